"""The weights store's client: tensors straight into place, over one kept-alive mTLS connection.

A store that is away, busy with a download or restarted is waited out with back-off; one that failed for good, or that
is not this pipe's, ends the wait with its reason. Not thread-safe: one client a loading thread.

http.client and not httpx2, the node's other HTTP client: it reads straight into a tensor's memory, and a range takes
1.8 times as long without that (docs/decisions/0005-http-clients.md).
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import quote

from languagepipes_api.facts import ModelFacts
from languagepipes_api.store_answers import ArithmeticChoices

from languagepipes_node.net.addresses import split_address
from languagepipes_node.net.dialling import connect
from languagepipes_node.net.errors import TlsError
from languagepipes_node.net.tls import TlsFiles, peer_identity
from languagepipes_node.weights.directory import exactly, row_range
from languagepipes_node.weights.errors import StoreFailed, StoreRefused, StoreUnavailable, WeightsError
from languagepipes_node.weights.index import MAX_JSON_BYTES, IndexEntry, WeightsIndex
from languagepipes_node.weights.source import TensorInfo

log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_SECONDS = 5.0
_READ_TIMEOUT_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 3.0
_PIECE_BYTES = 4 * 1024 * 1024
_MAX_INDEX_BYTES = 256 * 1024 * 1024


class StoreClient:
    """A `TensorSource` over `https://address` (host:port).

    pipe: (namespace, pipe) that the store's certificate must name; None takes any store of the CA, which is the pipe's
    own. revision: the model's, as planned; a store that has another one is waited out like one that is away, at the
    start and between any two reads. patience_seconds: how long to wait for a store that is away or not ready; None for
    as long as it takes. waiting: told why, whenever the reason to wait changes.
    moving: called whenever bytes came and at each pause of a wait: whoever loads is not stuck.
    bytes_read: bodies received so far.
    """

    def __init__(
        self,
        address: str,
        tls: TlsFiles,
        *,
        pipe: tuple[str, str] | None = None,
        revision: str | None = None,
        patience_seconds: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        moving: Callable[[], None] = lambda: None,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._host, self._port = split_address(address)
        self._address = address
        self._tls = tls
        self._pipe = pipe
        self._condition = {} if revision is None else {"If-Match": etag(revision)}
        self._patience_seconds = patience_seconds
        self._sleep = sleep
        self._moving = moving
        self._waiting = waiting
        self._connection: _StoreConnection | None = None
        self._index: WeightsIndex | None = None
        self.bytes_read = 0

    def facts(self) -> ModelFacts:
        """Waits until the store knows. Raises StoreFailed with the store's reason, or StoreRefused."""
        data = self._wait_for_json("/v1/facts", MAX_JSON_BYTES)
        try:
            return ModelFacts.from_json(data["facts"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreRefused(f"{self._address}: /v1/facts is not what this version reads ({error})") from error

    def progress(self) -> dict[str, Any]:
        """One attempt: {"phase", "done_bytes", "total_bytes", "error"}. Raises StoreUnavailable or StoreRefused."""
        return self._get_json("/v1/progress", MAX_JSON_BYTES)

    def index(self) -> WeightsIndex:
        """Which tensors there are; asked once."""
        if self._index is None:
            data = self._wait_for_json("/v1/index", _MAX_INDEX_BYTES)
            try:
                self._index = WeightsIndex.from_json(data)
            except (KeyError, TypeError, ValueError) as error:
                raise StoreRefused(f"{self._address}: /v1/index is not what this version reads ({error})") from error
        return self._index

    def names(self) -> Iterator[str]:
        return iter(self.index().tensors)

    def info(self, name: str) -> TensorInfo:
        entry = self._entry(name)
        return TensorInfo(name, entry.dtype, entry.shape, entry.nbytes)

    def read_into(self, name: str, destination: memoryview) -> None:
        entry = self._entry(name)
        self._read_range(entry.file, entry.begin, exactly(name, destination, entry.nbytes))

    def read_rows_into(self, name: str, first_row: int, rows: int, destination: memoryview) -> None:
        """Fill `destination` with rows `[first_row, first_row + rows)` of the tensor's first dimension."""
        entry = self._entry(name)
        offset, nbytes = row_range(name, entry.shape, entry.nbytes, first_row, rows)
        self._read_range(entry.file, entry.begin + offset, exactly(name, destination, nbytes))

    def file(self, name: str) -> bytes:
        files = self.index().files
        if name not in files:
            raise KeyError(name)
        if files[name] > MAX_JSON_BYTES:
            raise StoreRefused(f"{name}: {files[name]} bytes are no small file")
        data = bytearray(files[name])
        self._read_range(name, 0, memoryview(data))
        return bytes(data)

    def arithmetic(self, key: str) -> ArithmeticChoices | None:
        """What a member measured under this key, a SHA-256 in hexadecimal (`model.choices`); one attempt. None if none
        did, or the store is away or of a version that remembers nothing.
        """
        return self._exchange_arithmetic("GET", key)

    def remember_arithmetic(self, key: str, choices: ArithmeticChoices) -> ArithmeticChoices | None:
        """One attempt. Returns what the store remembers from now on; None as above."""
        return self._exchange_arithmetic("PUT", key, choices.model_dump_json().encode())

    def _exchange_arithmetic(self, method: str, key: str, body: bytes | None = None) -> ArithmeticChoices | None:
        try:
            response = self._request(f"/v1/arithmetic/{key}", {}, method=method, body=body)
            return ArithmeticChoices.model_validate_json(response.read(MAX_JSON_BYTES))
        except (OSError, http.client.HTTPException, WeightsError, ValueError) as error:
            log.debug("%s: nothing is remembered of %s: %s", self._address, key, error)
            self.close()
            return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _entry(self, name: str) -> IndexEntry:
        return self.index().tensors[name]

    def _read_range(self, file: str, begin: int, destination: memoryview) -> None:
        """Fill `destination` from byte `begin` on; what arrived before a broken connection is kept."""
        filled = 0
        path = f"/v1/files/{quote(file)}"

        def attempt() -> None:
            nonlocal filled
            while filled < len(destination):
                first, last = begin + filled, begin + len(destination) - 1
                response = self._request(path, {"Range": f"bytes={first}-{last}"})
                if response.status != 206 or response.length != last - first + 1:
                    self._refuse(response, path)
                while filled < len(destination):
                    count = response.readinto(destination[filled : filled + _PIECE_BYTES])
                    if not count:
                        raise http.client.IncompleteRead(b"", len(destination) - filled)
                    filled += count
                    self.bytes_read += count
                    self._moving()
                response.read()  # marks the response as done, so that the connection is used again

        if len(destination):
            self._wait_out(attempt, progressed=lambda: filled)

    def _wait_for_json(self, path: str, limit_bytes: int) -> dict[str, Any]:
        result: dict[str, Any] = {}

        def attempt() -> None:
            result.update(self._get_json(path, limit_bytes))

        self._wait_out(attempt)
        return result

    def _get_json(self, path: str, limit_bytes: int) -> dict[str, Any]:
        try:
            response = self._request(path, {})
            if response.status != 200 or response.length is None or response.length > limit_bytes:
                self._refuse(response, path)
            body = response.read()
            self.bytes_read += len(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._away(error) from error
        except StoreRefused:
            self.close()
            raise
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise StoreRefused(f"{self._address}: {path} is not JSON") from error
        if not isinstance(value, dict):
            raise StoreRefused(f"{self._address}: {path} is not a JSON object")
        return value

    def _wait_out(self, attempt: Callable[[], None], progressed: Callable[[], int] = lambda: 0) -> None:
        pause, started, mark, last_message = _FIRST_PAUSE_SECONDS, time.monotonic(), progressed(), ""
        while True:
            try:
                return attempt()
            except StoreUnavailable as error:
                unavailable = error
            except (OSError, http.client.HTTPException) as error:
                self.close()
                unavailable = self._away(error)
            if progressed() > mark:  # bytes came: this is a new trouble, not the old one
                pause, started, mark = _FIRST_PAUSE_SECONDS, time.monotonic(), progressed()
            if self._patience_seconds is not None and time.monotonic() - started > self._patience_seconds:
                raise unavailable
            if str(unavailable) != last_message:
                last_message = str(unavailable)
                log.info("waiting for the weights store: %s", last_message)
                self._waiting(last_message)
            self._moving()
            self._sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - spreads members out, no secret
            pause = min(pause * 1.6, _LONGEST_PAUSE_SECONDS)

    def _request(
        self, path: str, headers: dict[str, str], *, method: str = "GET", body: bytes | None = None
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = _StoreConnection(self._host, self._port, self._tls, self._pipe)
        self._connection.request(method, path, body, headers=self._condition | headers)
        response = self._connection.getresponse()
        if response.status in (200, 206):
            return response
        body = response.read(MAX_JSON_BYTES)
        if response.status in (412, 503):
            raise StoreUnavailable(f"{self._address}: {_message(body)[1]}")
        if response.status >= 500:
            reason, message = _message(body)
            raise StoreFailed(message, reason=reason)
        raise StoreRefused(f"{self._address}: {path} was refused with {response.status}: {_message(body)[1]}")

    def _refuse(self, response: http.client.HTTPResponse, path: str) -> NoReturn:
        self.close()
        raise StoreRefused(
            f"{self._address}: {path} was answered with {response.status} and {response.length} bytes, not as asked"
        )

    def _away(self, error: Exception) -> StoreUnavailable:
        if isinstance(error, ssl.SSLCertVerificationError):
            return StoreUnavailable(
                f"{self._address}: its certificate is not of this pipe's CA ({error.verify_message})"
            )
        return StoreUnavailable(f"{self._address}: {type(error).__name__}: {error}")


class _StoreConnection(http.client.HTTPSConnection):
    """An HTTPS connection that checks who answers by the certificate's URI, never by its host name."""

    def __init__(self, host: str, port: int, tls: TlsFiles, pipe: tuple[str, str] | None) -> None:
        super().__init__(host, port, timeout=_CONNECT_TIMEOUT_SECONDS, context=tls.client_context())
        self._tls = tls
        self._pipe = pipe

    def connect(self) -> None:
        raw = connect(self.host, self.port, _CONNECT_TIMEOUT_SECONDS)
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = self._tls.client_context().wrap_socket(raw, server_hostname=None)
            _check_is_store(secured, self._pipe, f"{self.host}:{self.port}")
            secured.settimeout(_READ_TIMEOUT_SECONDS)
        except BaseException:
            raw.close()
            raise
        self.sock = secured


def etag(revision: str) -> str:
    """A model's revision as an entity tag of RFC 9110, section 8.8.3."""
    return f'"{quote(revision)}"'


def _check_is_store(secured: ssl.SSLSocket, pipe: tuple[str, str] | None, address: str) -> None:
    try:
        identity = peer_identity(secured)
    except TlsError as error:
        raise StoreRefused(f"{address}: {error}") from error
    if identity.role != "store" or (pipe is not None and (identity.namespace, identity.pipe) != pipe):
        wanted = "a weights store" if pipe is None else f"the store of {pipe[0]}/{pipe[1]}"
        raise StoreRefused(f"{address}: answers as {identity}, not as {wanted}; check the store's address")


def _message(body: bytes) -> tuple[str, str]:
    try:
        error = json.loads(body)["error"]
        return str(error["reason"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "StoreFailed", "the store gave no reason"
