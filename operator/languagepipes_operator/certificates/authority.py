"""A certificate authority for each pipe, and the certificates of its members.

A certificate says who its holder is in one URI SAN (`Identity.uri`) and nothing else: members check that name
and the signature, never a host name. This module knows neither Kubernetes nor sockets; callers decide where
files go and when to renew.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from languagepipes_api.names import TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=90)
# Clocks of machines differ: a certificate is valid an hour before it was made.
BACKDATE = timedelta(hours=1)


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key (PKCS #8, unencrypted), both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "KeyPair(certificate=…, key=…)"  # a key must never reach a log

    @property
    def x509(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    def renew_at(self) -> datetime:
        """When two thirds of the certificate's life are over."""
        certificate = self.x509
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return begin + (end - begin) * 2 / 3


@dataclass(frozen=True)
class Credentials:
    """The operator's own certificate, kept in memory, and whom it trusts (PEM)."""

    bundle: bytes
    leaf: KeyPair


def new_ca(namespace: str, pipe: str, *, now: datetime | None = None, lifetime: timedelta = CA_LIFETIME) -> KeyPair:
    """A self-signed authority that may sign members of one pipe and no further authorities."""
    # 64 characters is the limit of a common name (X.520 ub-common-name); it is for people alone.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"languagepipes {namespace}/{pipe}"[:64])])
    key = ec.generate_private_key(ec.SECP256R1())
    begin = (now or datetime.now(UTC)) - BACKDATE
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue(
    ca: KeyPair, identity: Identity, *, now: datetime | None = None, lifetime: timedelta = LEAF_LIFETIME
) -> KeyPair:
    """A certificate for one member, good as client and as server. Its only name is the URI SAN
    `identity.uri`.
    """
    issuer = ca.x509
    ca_key = serialization.load_pem_private_key(ca.key, password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"the key of {issuer.subject.rfc4514_string()} is not an EC key: make a new CA with new_ca")
    key = ec.generate_private_key(ec.SECP256R1())
    begin = (now or datetime.now(UTC)) - BACKDATE
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(min(begin + lifetime, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        # Critical, as RFC 5280 (4.2.1.6) asks where the subject is empty.
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pair(certificate, key)


def write_tls_dir(directory: Path, ca: KeyPair | bytes, leaf: KeyPair) -> None:
    """Write ca.crt, tls.crt and tls.key (mode 0600), each atomically. `ca`: the pair, or a PEM bundle of
    certificates.

    The authority's key is never written. Members read the files anew for each connection, so this also
    renews.
    """
    bundle = ca if isinstance(ca, bytes) else ca.certificate
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The key first: a reader that meets the new key beside the old certificate keeps what it had until both
    # are new.
    _replace(directory / TLS_KEY_FILE, leaf.key, mode=0o600)
    _replace(directory / TLS_CERTIFICATE_FILE, leaf.certificate, mode=0o644)
    _replace(directory / TLS_CA_FILE, bundle, mode=0o644)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
