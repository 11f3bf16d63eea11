"""A replica that cannot serve now ends the connection: the client's next attempt is a new one, to another."""

from __future__ import annotations

import json
import socket

import pytest
from languagepipes_node.end_model.requests import EngineStatus, Failure
from support.scripted_engine import saying

HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": HI}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "prompt": "hi"},
    "/v1/responses": {"model": "tiny", "input": "hi"},
    "/v1/messages": {"model": "tiny", "messages": HI, "max_tokens": 8},
}
DOWN = EngineStatus(ring_ready=False, ring_error="stage 2 does not answer")


@pytest.fixture
def send(serve):
    """send(served, request, …): what comes back on one connection until the server closes it."""
    open_connections = []

    def on_one_connection(served, *requests):
        host, port = served.address.split(":")
        connection = socket.create_connection((host, int(port)), timeout=10)
        open_connections.append(connection)
        connection.sendall(b"".join(requests))
        received = b""
        while part := connection.recv(1 << 16):
            received += part
        return received

    yield on_one_connection
    for connection in open_connections:
        connection.close()


def post(path, body):
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def head_of(answer):
    return answer.partition(b"\r\n\r\n")[0].lower()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_a_ring_that_is_down_ends_the_connection_with_its_503(serve, send, path, stream):
    served = serve()
    served.engine.status = DOWN

    answer = send(served, post(path, {**BODIES[path], "stream": stream}))

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close" in head_of(answer)
    assert b"\r\nretry-after: " in head_of(answer)


@pytest.mark.parametrize("path", BODIES)
def test_a_ring_that_is_lost_before_the_first_token_ends_the_connection(serve, send, path):
    served = serve(lambda submission: iter([Failure(submission.request_id, "ring_down", "a stage is lost")]))

    answer = send(served, post(path, BODIES[path]))

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close" in head_of(answer)


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_that_fails_with_its_ring_is_whole_and_the_last_answer_of_its_connection(serve, send, codec, path):
    def script(submission):
        yield from codec.encode("Hello world")
        yield Failure(submission.request_id, "ring_down", "a stage is lost")

    served = serve(script, pace_seconds=0.001)

    answer = send(served, post(path, {**BODIES[path], "stream": True}))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"a stage is lost" in answer
    assert answer.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("path", ["/health", "/readyz"])
def test_a_health_check_that_fails_ends_the_connection(serve, send, path):
    served = serve()
    served.engine.status = DOWN

    answer = send(served, get(path))

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nconnection: close" in head_of(answer)


def test_an_answer_that_a_draining_server_completes_is_the_last_of_its_connection(serve, send, codec):
    served = None

    def script(submission):
        served.bridge.stop_admission("the server is shutting down: ask again")
        yield from saying(codec, "Hello world")(submission)

    served = serve(script)

    answer = send(served, post("/v1/chat/completions", CHAT))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close" in head_of(answer)
    assert b"Hello world" in answer


def test_a_server_that_serves_keeps_the_connection_and_what_is_sent_behind_a_503_is_not_answered(serve, send):
    served = serve()
    closing = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    kept = send(served, post("/v1/chat/completions", CHAT), post("/v1/chat/completions", CHAT), closing)
    served.engine.status = DOWN
    down = send(served, post("/v1/chat/completions", CHAT), get("/v1/models"))

    assert kept.count(b"HTTP/1.1 200 OK") == 3
    assert down.count(b"HTTP/1.1 ") == 1
