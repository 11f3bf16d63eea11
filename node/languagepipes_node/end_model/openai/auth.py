"""API keys from a directory of files, each file's content being one key; compared in constant time.

The directory is a mounted Secret or one that `languagepipes up` was given. Keys are read again when a file changes,
so that a key can be added or withdrawn without a restart.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from fastapi.security import APIKeyHeader, HTTPBearer

from languagepipes_node.end_model.openai.errors import Unauthorised

_CHECK_SECONDS = 1.0
_MAX_KEY_BYTES = 4096

# Describes the keys in `/openapi.json`; the guard in app.py asks for them.
bearer = HTTPBearer(scheme_name="ApiKey", auto_error=False, description="One of the keys that the server was given.")
header = APIKeyHeader(
    name="x-api-key",
    scheme_name="ApiKeyHeader",
    auto_error=False,
    description="The same, as Anthropic's clients send it.",
)

logger = logging.getLogger(__name__)

_Signature = tuple[tuple[str, int, int, int], ...]


class ApiKeys:
    """The keys that may use the API. `directory` None: no key is asked for.

    A directory without a usable key lets nobody in, and so does one that cannot be read: a lost mount must not open
    the door. Only SHA-256 digests are kept in memory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._digests: tuple[bytes, ...] = ()
        self._signature: _Signature | None = None
        self._checked_at = float("-inf")
        if directory is not None:
            self._refresh(directory)

    @property
    def required(self) -> bool:
        return self._directory is not None

    def allows(self, key: bytes) -> bool:
        """Whether `key` is one of the keys. The time taken says nothing of how much of a key matches."""
        if self._directory is None:
            return True
        if time.monotonic() - self._checked_at >= _CHECK_SECONDS:
            self._refresh(self._directory)
        presented = hashlib.sha256(key).digest()
        found = False
        for digest in self._digests:  # every key is compared, whichever matches
            found |= hmac.compare_digest(presented, digest)
        return found

    def _refresh(self, directory: Path) -> None:
        self._checked_at = time.monotonic()
        try:
            files = _key_files(directory)
            signature = _signature(files)
            if signature == self._signature:
                return
            keys = [key for path in files if (key := _read_key(path))]
        except OSError as error:
            self._digests, self._signature = (), None
            logger.warning("API keys cannot be read, so every request is refused: %s", error)
            return
        self._digests = tuple(hashlib.sha256(key).digest() for key in keys)
        self._signature = signature
        if not keys:
            logger.warning("%s holds no API key, so every request is refused", directory)


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key that a request was sent with: in `Authorization: Bearer KEY`, or else in `x-api-key: KEY`. Raises
    Unauthorised."""
    authorization, plain = [], []
    for name, value in headers:
        if name == b"authorization":
            authorization.append(value)
        elif name == b"x-api-key":
            plain.append(value)
    if not authorization and not plain:
        raise Unauthorised(
            "You did not provide an API key. Send it in an Authorization header: 'Authorization: Bearer KEY'."
        )
    if not authorization:
        scheme, key = b"bearer", plain[0]
    else:
        scheme, _, key = authorization[0].partition(b" ")
    if max(len(authorization), len(plain)) > 1 or scheme.lower() != b"bearer":
        raise Unauthorised("Incorrect API key provided.")
    return key.strip()


def _key_files(directory: Path) -> list[Path]:
    # A mounted Secret keeps its files in ..data and a dated folder, and links to them under their names.
    return [path for path in sorted(directory.iterdir()) if path.name[0] != "." and path.is_file()]


def _signature(files: list[Path]) -> _Signature:
    stats = [(path.name, path.stat()) for path in files]
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        key = file.read(_MAX_KEY_BYTES + 1).strip()
    if len(key) > _MAX_KEY_BYTES:
        logger.warning("API key file %s is ignored: it is longer than %d bytes", path.name, _MAX_KEY_BYTES)
        return b""
    return key
