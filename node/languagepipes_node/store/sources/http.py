"""HTTP as the Hub's and mirrors' files need it: ranges, streams, redirects, and failures told by reason.

An Authorization header goes to the host that it was meant for and to no other: the client drops it on a redirect to
another origin, and callers check the first host.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx

from languagepipes_node.weights.errors import (
    FileNotFoundAtSource,
    GatedRepository,
    RepositoryNotFound,
    RevisionNotFound,
    SourceError,
    SourceUnreachable,
    UnsupportedSource,
)

# At INFO the client logs addresses, and those of the Hub's CDN are signed.
logging.getLogger("httpx2").setLevel(logging.WARNING)

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MAX_REDIRECTS = 5


def new_client(trusted: ssl.SSLContext | None = None) -> httpx.Client:
    """trusted: the authorities that servers may be signed by; None for the system's."""
    verify = True if trusted is None else trusted
    return httpx.Client(verify=verify, timeout=TIMEOUT, follow_redirects=True, max_redirects=_MAX_REDIRECTS)


def trusting(authorities: Path) -> ssl.SSLContext:
    """The system's authorities, and those of a PEM file. Raises OSError (ssl.SSLError for what holds none)."""
    context = httpx.create_ssl_context()
    context.load_verify_locations(cafile=authorities)
    return context


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_tls(url: str, *, what: str) -> None:
    """Raise UnsupportedSource unless `url` is https, or http on loopback (which never leaves this machine)."""
    scheme = urlsplit(url).scheme
    if scheme != "https" and not (scheme == "http" and is_loopback(url)):
        raise UnsupportedSource(f"{what} {url!r} is not https://; nothing is sent to it in the clear")


@contextmanager
def get(client: httpx.Client, url: str, headers: Mapping[str, str], *, what: str) -> Iterator[httpx.Response]:
    """A streamed GET whose failures are SourceErrors. The body is not encoded: ranges then mean bytes of the file."""
    try:
        with client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as response:
            raise_for_status(response, what)
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise UnsupportedSource(f"{what}: the server encodes it although asked not to")
            yield response
    except httpx.TooManyRedirects as error:
        raise UnsupportedSource(f"{what}: more than {_MAX_REDIRECTS} redirects") from error
    except (httpx.TransportError, httpx.StreamError, OSError) as error:
        raise unreachable(what, error) from error


def unreachable(what: str, error: Exception) -> SourceUnreachable:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return SourceUnreachable(f"{what}: {detail}; trying again")


def raise_for_status(response: httpx.Response, what: str) -> None:
    """Translate the Hub's statuses and X-Error-Code headers, which mirrors' plain statuses are a part of."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    if status < 400:
        return
    raise translate(status, code, what)


def translate(status: int, code: str, what: str) -> SourceError:
    if code == "GatedRepo":
        return GatedRepository(
            f"{what} is gated: accept its terms on the Hub and name a token of that account in tokenSecretRef"
        )
    if code == "RevisionNotFound":
        return RevisionNotFound(f"{what}: no such branch, tag or commit; correct spec.model.revision")
    if code == "EntryNotFound":
        return FileNotFoundAtSource(f"{what} is not there; complete the source or name another revision")
    if status in (401, 403):
        return RepositoryNotFound(
            f"{what}: refused with {status}; it does not exist, or it is private and the token may not read it"
        )
    if code == "RepoNotFound":
        return RepositoryNotFound(
            f"{what} does not exist, or is private: correct spec.model.source or name a token in tokenSecretRef"
        )
    if status in (404, 410):
        return FileNotFoundAtSource(f"{what} is not there ({status}); correct spec.model.source")
    if status in (408, 425, 429) or status >= 500:
        return SourceUnreachable(f"{what}: the server answers {status}; trying again")
    return UnsupportedSource(f"{what}: the server answers {status}, which no file server should")


def read_range(client: httpx.Client, url: str, headers: Mapping[str, str], begin: int, end: int, *, what: str) -> bytes:
    """Exactly `[begin, end)`. A server without ranges is read up to `end`, and no further."""
    if begin == end:
        return b""
    with get(client, url, {**headers, "Range": f"bytes={begin}-{end - 1}"}, what=what) as response:
        skip = begin if response.status_code == 200 else 0
        data = bytearray()
        for chunk in response.iter_raw():
            data += chunk
            if len(data) >= skip + end - begin:
                break
    if len(data) < skip + end - begin:
        raise SourceUnreachable(f"{what}: {len(data)} of {end - begin} bytes came; trying again")
    return bytes(data[skip : skip + end - begin])


def stream_from(
    client: httpx.Client, url: str, headers: Mapping[str, str], begin: int, *, what: str, size: int
) -> tuple[int, Iterator[bytes]]:
    """See RemoteSource.stream."""
    asked = {"Range": f"bytes={begin}-"} if begin else {}
    exits = ExitStack()
    response = exits.enter_context(get(client, url, {**headers, **asked}, what=what))
    stated = response.headers.get("Content-Range", "")
    if response.status_code == 206 and stated.rpartition("/")[2] not in (str(size), "*"):
        exits.close()
        raise UnsupportedSource(f"{what}: the server states {stated!r} of a file of {size} bytes; it was changed")

    def chunks() -> Iterator[bytes]:
        with exits:
            try:
                yield from response.iter_raw()  # unlike iter_bytes(n), hands over all that came before a cut
            except (httpx.TransportError, httpx.StreamError, OSError) as error:
                raise unreachable(what, error) from error

    return begin if response.status_code == 206 else 0, chunks()
