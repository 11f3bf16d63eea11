"""Reads certificates and keys from PEM, and checks them. What cannot be read is None or empty, and never an error.

Knows neither Secrets nor which certificate belongs to whom.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from languagepipes_operator.certificates.authority import KeyPair


def read_pair(certificate: bytes, key: bytes) -> KeyPair | None:
    """None unless both can be read and belong together."""
    pair = KeyPair(certificate, key)
    try:
        private = serialization.load_pem_private_key(key, password=None)
        if len(read_certificates(certificate)) != 1 or pair.x509.public_key() != private.public_key():
            return None
    except (ValueError, TypeError, x509.InvalidVersion):  # TypeError: the key is encrypted
        return None
    return pair


def read_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Empty if it cannot be read."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        return ()


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether it is self-signed and may sign certificates."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and is_issued_by(certificate, certificate)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key signed it and the names agree."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def uris_of(certificate: x509.Certificate) -> list[str]:
    """The URIs among its alternative names."""
    try:
        names_of = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names_of.get_values_for_type(x509.UniformResourceIdentifier)
