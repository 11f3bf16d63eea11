"""TLS for every connection between members: which files, which contexts, and who the peer is.

TLS 1.3 only, both sides show a certificate of the pipe's CA. Host names are never checked; the peer's one URI
SAN is, by the caller, against the `Identity` it expects. This module opens no sockets.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from languagepipes_api.names import API_GROUP, TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity

from languagepipes_node.net.errors import TlsError

# Reading is repeated if a renewal replaces the files meanwhile; the next renewal is weeks away.
_ATTEMPTS = 3
_LABEL = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_URI = re.compile(
    rf"spiffe://{re.escape(API_GROUP)}/ns/(?P<namespace>{_LABEL})/pipe/(?P<pipe>{_LABEL})/"
    r"(?:(?P<shared>store|operator)"
    r"|chain/(?P<chain>0|[1-9][0-9]{0,8})/(?:stage/(?P<stage>[1-9][0-9]{0,3})|(?P<end>end-model)))"
)


class HasPeerCertificate(Protocol):
    """An `ssl.SSLSocket` or `ssl.SSLObject`."""

    def getpeercert(self) -> Any: ...


def identity_from_uri(uri: str) -> Identity:
    """The inverse of `Identity.uri`. Raises TlsError if the URI names no member."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise TlsError(f"certificate names {uri!r}, which is no member of a pipe")
    namespace, pipe = match["namespace"], match["pipe"]
    if match["shared"] == "store":
        return Identity(namespace, pipe, -1, "store")
    if match["shared"] == "operator":
        return Identity(namespace, pipe, -1, "operator")
    if match["stage"] is not None:
        return Identity(namespace, pipe, int(match["chain"]), "stage", int(match["stage"]))
    return Identity(namespace, pipe, int(match["chain"]), "end-model")


def identity_from_certificate(certificate: Mapping[str, Any]) -> Identity:
    """The identity in a verified certificate, given as `getpeercert()` (or asyncio's "peercert") returns it.

    Raises TlsError unless it has exactly one URI SAN and that is a member's.
    """
    names = certificate.get("subjectAltName", ()) if certificate else ()
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1:
        raise TlsError(f"certificate has {len(uris)} URI names, and must have exactly one: the member's identity")
    return identity_from_uri(uris[0])


def peer_identity(connection: HasPeerCertificate) -> Identity:
    """The identity in the peer's certificate. Raises TlsError if it showed none or an unusable one."""
    return identity_from_certificate(connection.getpeercert() or {})


@dataclass(frozen=True)
class TlsReport:
    """What new connections use. bundle: SHA-256 (hex) of ca.crt. leaf_not_after: seconds since the epoch."""

    bundle: str
    leaf_not_after: float


@dataclass(frozen=True)
class _Generation:
    """The three files as they were at one moment. signature: changes when any of them does."""

    signature: tuple[object, ...]
    client: ssl.SSLContext
    server: ssl.SSLContext
    report: TlsReport


class TlsFiles:
    """A directory with ca.crt, tls.crt and tls.key (PEM), read anew when they change.

    In a Secret's volume all three are links through `..data`, which the kubelet replaces atomically and whose old
    target it then deletes: the files are read where it points, so that no two renewals are mixed. Elsewhere renewal
    replaces them one by one; while they do not belong together, the contexts made before stay in use.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._kept: _Generation | None = None

    def client_context(self) -> ssl.SSLContext:
        """For dialling. Raises TlsError naming the directory if the files cannot be used."""
        return self._current().client

    def server_context(self) -> ssl.SSLContext:
        """For accepting. Raises TlsError naming the directory if the files cannot be used."""
        return self._current().server

    def report(self) -> TlsReport:
        """What a connection made now would use. Raises TlsError."""
        return self._current().report

    def _current(self) -> _Generation:
        with self._lock:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._kept = self._read(self._kept)
                    break
                except OSError as error:  # ssl.SSLError is an OSError
                    if attempt < _ATTEMPTS:  # perhaps they were replaced just now
                        continue
                    if self._kept is None:
                        raise TlsError(
                            f"TLS files in {self.directory} cannot be used: {error.strerror or error}. It must hold "
                            f"{TLS_CA_FILE}, {TLS_CERTIFICATE_FILE} and {TLS_KEY_FILE} that belong together"
                        ) from error
            assert self._kept is not None  # noqa: S101 (else it raised)
            return self._kept

    def _read(self, kept: _Generation | None) -> _Generation:
        """`kept` if nothing changed. Raises OSError also if something changed while it was read."""
        place = self._place()
        signature = _signature(place)
        if kept is not None and kept.signature == signature:
            return kept
        bundle = (place / TLS_CA_FILE).read_bytes()
        leaf = (place / TLS_CERTIFICATE_FILE).read_bytes()
        made = _Generation(
            signature=signature,
            client=_build(place, bundle, server=False),
            server=_build(place, bundle, server=True),
            report=TlsReport(hashlib.sha256(bundle).hexdigest(), _not_after(leaf)),
        )
        if self._place() != place or _signature(place) != signature:
            raise OSError(errno.EAGAIN, "the files were replaced while they were read")
        return made

    def _place(self) -> Path:
        swapped = self.directory / "..data"
        return swapped.resolve(strict=True) if swapped.is_symlink() else self.directory


def _signature(place: Path) -> tuple[object, ...]:
    values: list[object] = [str(place)]
    for name in (TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE):
        status = os.stat(place / name)
        values += (status.st_ino, status.st_mtime_ns, status.st_size)
    return tuple(values)


def _build(place: Path, bundle: bytes, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        # On a link where one side only sends, session tickets lose data (openssl #7948, #10880).
        context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=bundle.decode("ascii"))
    except ValueError as error:  # empty, or no text
        raise ssl.SSLError(f"{TLS_CA_FILE} holds no certificate") from error
    context.load_cert_chain(str(place / TLS_CERTIFICATE_FILE), str(place / TLS_KEY_FILE), password=_no_password)
    return context


def _not_after(pem: bytes) -> float:
    """When the first certificate ends (RFC 5280, 4.1.2.5). Raises OSError if it cannot be read.

    By hand: Python's ssl shows a peer's certificate and never one's own.
    """
    try:
        text = pem.decode("ascii")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin) + len("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(text[begin:end])
        certificate = _children(der)[0][1]
        fields = _children(_children(certificate)[0][1])  # [0] version, serialNumber, signature, issuer, validity
        validity = fields[4 if fields[0][0] == 0xA0 else 3]
        kind, value = _children(validity[1])[1]
        form = "%y%m%d%H%M%SZ" if kind == 0x17 else "%Y%m%d%H%M%SZ"  # UTCTime until 2049
        return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
    except (ValueError, IndexError) as error:
        raise ssl.SSLError(f"{TLS_CERTIFICATE_FILE} cannot be read") from error


def _children(data: bytes) -> list[tuple[int, bytes]]:
    """The DER values that stand one after another: (tag, content)."""
    found, at = [], 0
    while at < len(data):
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        found.append((tag, data[at : at + size]))
        at += size
    return found


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal for the password of an encrypted key.
    raise ssl.SSLError("the key is encrypted; keys are stored without a password")
