"""Request lines and headers that never end, or end too late."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest
from languagepipes_node.end_model.openai import connections
from support.scripted_engine import forever

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def connect(serve):
    served = serve()
    host, port = served.address.split(":")
    open_connections = []

    def start():
        connection = socket.create_connection((host, int(port)), timeout=10)
        open_connections.append(connection)
        return connection

    yield start
    for connection in open_connections:
        connection.close()


@pytest.fixture
def in_a_moment(monkeypatch):
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.5)


def everything(connection):
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    return received


def headers_taken(connection):
    """How many of 1,000 headers of 1 kB could be sent."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            connection.sendall(b"X-More: " + b"1" * 1000 + b"\r\n")
            sent += 1
            time.sleep(0.001)
    return sent


def error_of(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert f"content-length: {len(body)}".encode() in head
    return head.split(b" ")[1], json.loads(body)["error"]


def test_a_head_that_trickles_in_is_a_408(in_a_moment, connect):
    connection = connect()
    started = time.monotonic()
    connection.sendall(HEAD)
    for _ in range(4):
        time.sleep(0.05)
        connection.sendall(b"X-More: 1\r\n")
    status, error = error_of(everything(connection))
    assert 0.4 < time.monotonic() - started < 3
    assert (status, error["code"]) == (b"408", "request_timeout")
    assert error["message"] == "The request's headers did not arrive within 0.5 s."


@pytest.mark.parametrize("path", [b"/v1/messages", b"/v1/messages/count_tokens?beta=true", b"/v1/messages_of"])
@pytest.mark.parametrize("late", [True, False])
def test_a_head_that_is_refused_has_the_form_of_its_routes_errors(in_a_moment, connect, path, late):
    connection = connect()
    connection.sendall(b"POST " + path[:9])
    time.sleep(0.05)
    connection.sendall(path[9:] + b" HTTP/1.1\r\nHost: x\r\n")
    if not late:
        connection.sendall(b"X-More: " + b"1" * (connections._HEAD_BYTES + 1))
    head, _, body = everything(connection).partition(b"\r\n\r\n")
    answer = json.loads(body)
    assert head.startswith(b"HTTP/1.1 408" if late else b"HTTP/1.1 431")
    if path == b"/v1/messages_of":
        assert answer["error"]["code"] == ("request_timeout" if late else "request_too_large")
        assert b"\r\nx-request-id: req_" in head
        assert b"\r\nrequest-id: " not in head
        return
    assert (answer["type"], answer["error"]["type"]) == ("error", "timeout_error" if late else "request_too_large")
    assert f"\r\nx-request-id: {answer['request_id']}\r\nrequest-id: {answer['request_id']}\r\n".encode() in head


def test_a_connection_without_a_request_is_closed(in_a_moment, connect):
    connection = connect()
    started = time.monotonic()
    assert everything(connection) == b""
    assert 0.4 < time.monotonic() - started < 3


def test_empty_lines_are_no_request(in_a_moment, connect):
    connection = connect()
    for _ in range(4):
        connection.sendall(b"\r\n")
        time.sleep(0.05)
    assert everything(connection) == b""


def test_empty_lines_after_an_answer_are_no_request_either(in_a_moment, connect):
    connection = connect()
    connection.sendall(HEAD + b"\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    connection.sendall(b"\r\n")
    time.sleep(0.8)
    connection.sendall(HEAD + b"\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_head_beside_an_answer_that_is_under_way_is_bounded_too(serve, codec, in_a_moment):
    served = serve(forever(codec), pace_seconds=0.02, max_context_length=100_000)
    host, port = served.address.split(":")
    body = json.dumps({"model": "tiny", "prompt": "hi", "stream": True, "max_tokens": 10_000}).encode()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body + HEAD)
        received = everything(connection)
    assert received.startswith(b"HTTP/1.1 200")
    assert b"408" not in received
    served.wait_until_idle()


@pytest.mark.parametrize("after", [0, 20_000, 300_000])
def test_the_body_of_a_request_that_was_answered_early_is_no_head(in_a_moment, connect, after):
    """An unknown URL is answered before its body is read."""
    connection = connect()
    size = 1000 + after
    connection.sendall(b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"x" * 1000)
    answer = connection.recv(1 << 16)
    while not answer.endswith(b"}}"):
        answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 404")
    connection.sendall(b"x" * after)
    time.sleep(0.8)
    connection.sendall(HEAD + b"\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_trailers_without_end_are_refused(connect):
    connection = connect()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    time.sleep(0.1)
    connection.sendall(b"2\r\n{}\r\n0\r\n")
    assert headers_taken(connection) < 200


def test_a_body_in_chunks_of_one_byte_is_read(connect):
    connection = connect()
    body = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1, "user": "x" * 30_000}).encode()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_second_request_on_the_connection_must_arrive_in_time_too(in_a_moment, connect):
    connection = connect()
    connection.sendall(HEAD + b"\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    time.sleep(0.8)  # an idle connection is kept for longer
    connection.sendall(HEAD)
    assert error_of(everything(connection))[0] == b"408"


def test_a_body_may_take_longer_than_the_head(in_a_moment, connect):
    connection = connect()
    body = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1}).encode()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    time.sleep(0.8)
    connection.sendall(body)
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_head_without_end_is_a_431(connect):
    connection = connect()
    connection.sendall(HEAD)
    assert 60 < headers_taken(connection) < 200


def test_a_large_head_is_told_its_limit(connect):
    connection = connect()
    connection.sendall(HEAD + b"X-More: " + b"1" * (connections._HEAD_BYTES + 1))
    status, error = error_of(everything(connection))
    assert (status, error["code"]) == (b"431", "request_too_large")
    assert error["message"] == f"The request's headers are larger than {connections._HEAD_BYTES} bytes."


def test_a_refusal_reaches_a_client_that_sends_on(connect):
    """A connection that is closed with bytes unread is reset, and takes the answer with it."""
    connection = connect()
    connection.sendall(HEAD + b"X-More: " + b"1" * (connections._HEAD_BYTES + 1))
    for _ in range(3):
        time.sleep(0.1)
        connection.sendall(b"1" * 10_000)
    assert error_of(everything(connection))[0] == b"431"


def test_a_client_that_neither_closes_nor_reads_is_let_go(connect, monkeypatch):
    monkeypatch.setattr(connections, "_LINGER_SECONDS", 0.3)
    connection = connect()
    connection.sendall(HEAD + b"X-More: " + b"1" * (connections._HEAD_BYTES + 1))
    time.sleep(1)
    assert headers_taken(connection) < 10


def test_a_head_of_usual_size_is_served(connect):
    connection = connect()
    connection.sendall(HEAD + b"Cookie: " + b"1" * 30_000 + b"\r\n\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
