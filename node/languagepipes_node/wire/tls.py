"""TLS for every connection between members: which files, which contexts, and who the peer is.

TLS 1.3 only, both sides show a certificate of the pipe's CA. Host names are never checked; the peer's one URI
SAN is, by the caller, against the `Identity` it expects. This module opens no sockets.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from languagepipes_api.names import API_GROUP, TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity

from languagepipes_node.wire.errors import TlsError

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
    """Whom a verified certificate names, given as `getpeercert()` (or asyncio's "peercert") tells it.

    Raises TlsError unless it has exactly one URI SAN and that is a member's.
    """
    names = certificate.get("subjectAltName", ()) if certificate else ()
    uris = [value for kind, value in names if kind == "URI"]
    if len(uris) != 1:
        raise TlsError(f"certificate has {len(uris)} URI names, and must have exactly one: the member's identity")
    return identity_from_uri(uris[0])


def peer_identity(connection: HasPeerCertificate) -> Identity:
    """Whom the peer's certificate names. Raises TlsError if it showed none or an unusable one."""
    return identity_from_certificate(connection.getpeercert() or {})


class TlsFiles:
    """A directory with ca.crt, tls.crt and tls.key (PEM), read anew when they change.

    While the files cannot be read (renewal replaces them one by one) the contexts made before stay in use.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._contexts: dict[bool, tuple[tuple[int, ...], ssl.SSLContext]] = {}

    def client_context(self) -> ssl.SSLContext:
        """For dialling. Raises TlsError naming the directory if the files cannot be used."""
        return self._context(server=False)

    def server_context(self) -> ssl.SSLContext:
        """For accepting. Raises TlsError naming the directory if the files cannot be used."""
        return self._context(server=True)

    def _context(self, *, server: bool) -> ssl.SSLContext:
        with self._lock:
            kept = self._contexts.get(server)
            try:
                signature = self._signature()
                if kept is None or kept[0] != signature:
                    kept = (signature, self._build(server=server))
                    self._contexts[server] = kept
            except OSError as error:  # ssl.SSLError is an OSError
                if kept is None:
                    raise TlsError(
                        f"TLS files in {self.directory} cannot be used: {error.strerror or error}. It must hold "
                        f"{TLS_CA_FILE}, {TLS_CERTIFICATE_FILE} and {TLS_KEY_FILE} that belong together"
                    ) from error
            return kept[1]

    def _signature(self) -> tuple[int, ...]:
        values: list[int] = []
        for name in (TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE):
            status = os.stat(self.directory / name)
            values += (status.st_ino, status.st_mtime_ns, status.st_size)
        return tuple(values)

    def _build(self, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        if server:
            # On a link where one side only sends, session tickets lose data (openssl #7948, #10880).
            context.num_tickets = 0
        context.load_verify_locations(cafile=str(self.directory / TLS_CA_FILE))
        context.load_cert_chain(
            str(self.directory / TLS_CERTIFICATE_FILE),
            str(self.directory / TLS_KEY_FILE),
            password=_no_password,
        )
        return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal for the password of an encrypted key.
    raise ssl.SSLError("the key is encrypted; keys are stored without a password")
