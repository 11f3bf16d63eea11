"""Clients that offer another protocol with a request get its answer over HTTP/1.1, and may go on."""

from __future__ import annotations

import json
import socket
from http.client import HTTPResponse

import pytest

BODY = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 50}).encode()
# What Java's HttpClient sends with its first request to a plain http address.
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
WEBSOCKET = b"Connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


@pytest.fixture
def connection(serve):
    host, port = serve(" world").address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def answer_of(connection, method: str = "POST") -> tuple[int, bytes]:
    answer = HTTPResponse(connection, method=method)
    answer.begin()
    return answer.status, answer.read()


def with_length(offer: bytes) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + offer
    return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def in_chunks(offer: bytes) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + offer + b"Transfer-Encoding: chunked\r\n\r\n"
    half = len(BODY) // 2
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:], b""))


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("framed", [with_length, in_chunks])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_offer_is_ignored_and_the_body_is_read(connection, offer, framed, size):
    request = framed(offer)
    for _ in range(2):
        for begin in range(0, len(request), size):
            connection.sendall(request[begin : begin + size])
        status, body = answer_of(connection)
        assert status == 200
        assert json.loads(body)["choices"][0]["text"] == " world"


def test_requests_without_an_offer_may_follow_in_the_same_write(connection):
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n"
    connection.sendall(get + with_length(b"") + get + b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    reader = connection.makefile("rb")
    seen = []
    for _ in range(4):
        status = reader.readline().split()[1]
        length = 0
        while line := reader.readline().strip().lower():
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        seen.append((status, reader.read(length)[:10]))
    assert [status for status, _ in seen] == [b"200"] * 4
    assert seen[0][1] == b'{"status":'


def test_what_is_wrong_after_an_offer_is_a_400(connection):
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\n" + H2C + b"Content-Length: 2\r\n\r\n{}")
    status, body = answer_of(connection)
    assert status == 400
    assert json.loads(body)["error"]["param"] in ("model", "prompt")


def test_connect_is_no_offer(connection):
    connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
    assert connection.recv(100).split(b" ")[1].startswith(b"4")
