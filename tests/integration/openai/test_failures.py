"""Engines that fail, clients that leave, clients that dawdle."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from languagepipes_node.end_model.openai import generation
from languagepipes_node.end_model.requests import EngineStatus, Failure
from prometheus_client import REGISTRY
from support.scripted_engine import forever, saying

HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "tiny", "messages": HI}


def failing(code, message="stage 2 went away", *, after=()):
    return lambda submission: itertools.chain(after, [Failure(0, code, message)])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status", "type", "lead"),
    [
        ("queue_full", 429, "rate_limit_error", ""),
        ("ring_down", 503, "server_error", "the ring of stages is down, ask again in a moment: "),
        ("internal", 500, "server_error", ""),
    ],
)
def test_a_failure_before_the_first_token_is_an_http_status(serve, code, status, type, lead, stream):
    served = serve(failing(code))
    response = httpx.post(f"{served.url}/v1/chat/completions", json={**CHAT, "stream": stream})
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["type"], error["message"]) == (type, f"{lead}stage 2 went away")
    assert error["code"] == (code if code != "internal" else "internal_error")
    assert ("retry-after" in response.headers) == (status != 500)


def test_a_failure_in_mid_stream_is_an_event_and_the_stream_never_says_done(serve, codec):
    served = serve(failing("ring_down", after=codec.encode("Hello world")), pace_seconds=0.02)
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status_code == 200
        events = [line[6:] for line in response.iter_lines() if line]
    assert json.loads(events[-1])["error"]["code"] == "ring_down"
    assert "[DONE]" not in events
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    assert text == "Hello world"
    with pytest.raises(openai.APIError, match="stage 2 went away"):
        list(served.client.chat.completions.create(model="tiny", messages=HI, stream=True))


def test_one_failed_choice_ends_the_request_and_cancels_the_others(serve, codec):
    served = serve(
        lambda submission: forever(codec)(submission) if submission.request_id % 2 else failing("internal")(submission),
        pace_seconds=0.005,
    )
    with pytest.raises(openai.InternalServerError):
        served.client.chat.completions.create(model="tiny", messages=HI, n=2)
    served.wait_until_idle()


def test_a_ring_that_is_down_is_a_503_and_not_ready(serve):
    served = serve()
    assert httpx.get(f"{served.url}/readyz").status_code == 200
    served.engine.status = EngineStatus(ring_ready=False, ring_error="stage 2 does not answer")
    with pytest.raises(openai.APIStatusError) as down:
        served.client.chat.completions.create(model="tiny", messages=HI)
    assert down.value.status_code == 503
    assert down.value.code == "ring_down"
    assert int(down.value.response.headers["retry-after"]) > 0
    ready = httpx.get(f"{served.url}/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "stage 2 does not answer")
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    assert served.engine.submissions == []


def test_an_engine_that_ended_fails_what_is_open_and_what_comes(serve, codec):
    served = serve(forever(codec), pace_seconds=0.01, max_context_length=100_000)
    stream = served.client.chat.completions.create(model="tiny", messages=HI, stream=True)
    next(stream)
    served.bridge.engine_gone("another End Model holds the replica")
    with pytest.raises(openai.APIError, match="another End Model holds the replica"):
        list(stream)
    with pytest.raises(openai.APIStatusError, match="another End Model holds the replica") as later:
        served.client.chat.completions.create(model="tiny", messages=HI)
    assert later.value.status_code == 503


def test_more_answers_than_are_admitted_are_a_429(serve, codec):
    served = serve(forever(codec), pace_seconds=0.01, max_sequences=2)
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True, n=2) as stream:
        next(stream)
        with pytest.raises(openai.RateLimitError) as full:
            served.client.chat.completions.create(model="tiny", messages=HI)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) > 0
    served.wait_until_idle()
    assert served.client.chat.completions.create(model="tiny", messages=HI, max_tokens=1).choices


def test_a_client_that_leaves_a_stream_stops_its_computation(serve, codec):
    served = serve(forever(codec), pace_seconds=0.005, max_context_length=100_000)
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
        for _ in range(5):
            next(stream)
    served.wait_until_idle()
    assert [cancelled.request_id for cancelled in served.engine.cancellations] == [1]


def test_a_client_that_leaves_while_it_waits_stops_its_computation(serve, codec):
    served = serve(forever(codec), pace_seconds=0.005, max_context_length=100_000)
    with pytest.raises(openai.APITimeoutError):
        served.client.with_options(timeout=0.3).chat.completions.create(model="tiny", messages=HI, n=2)
    served.wait_until_idle()
    assert len(served.engine.cancellations) == 2


def test_a_client_that_leaves_before_the_first_token_stops_its_computation(serve, codec):
    served = serve(forever(codec), pace_seconds=0.5, max_context_length=100_000)
    body = json.dumps({**CHAT, "stream": True}).encode()
    host, port = served.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while not served.engine.submissions:
            time.sleep(0.01)
    served.wait_until_idle()
    assert len(served.engine.cancellations) == 1


def test_a_client_that_reads_nothing_holds_up_neither_the_engine_nor_other_clients(serve, codec):
    served = serve(
        lambda s: forever(codec)(s) if s.max_tokens > 100 else saying(codec, "Hello")(s),
        max_context_length=100_000,
    )
    body = json.dumps({**CHAT, "stream": True, "max_tokens": 20_000, "ignore_eos": True}).encode()
    host, port = served.address.split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while served.engine.steps < 10:
            time.sleep(0.01)
        started = time.monotonic()
        answer = served.client.chat.completions.create(model="tiny", messages=HI, max_tokens=50)
        assert answer.choices[0].message.content == "Hello"
        assert time.monotonic() - started < 5
        served.wait_until_idle(10)  # all 20,000 tokens were generated though nobody read them
        received = bytearray()
        connection.settimeout(10)
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(1 << 16)
    assert b"data: [DONE]" in received
    text = received.count(b'"content":" h') + received.count(b'"content":"hello"')
    assert received.count(b'"finish_reason":"length"') == 1
    assert text > 0


def test_a_client_that_reads_nothing_for_too_long_counts_as_gone(serve, codec, monkeypatch):
    monkeypatch.setattr(generation, "_STALL_SECONDS", 0.3)
    served = serve(forever(codec), max_context_length=10_000_000)
    body = json.dumps({**CHAT, "stream": True}).encode()
    host, port = served.address.split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        while not served.engine.submissions:
            time.sleep(0.01)
        served.wait_until_idle(10)
    assert len(served.engine.cancellations) == 1


def test_a_fault_of_the_server_is_a_500_that_quotes_nothing(serve, caplog):
    served = serve()

    def break_down(command):
        raise RuntimeError(command)

    served.engine.submit = break_down
    response = httpx.post(f"{served.url}/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "The server failed to handle the request.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "RuntimeError" in caplog.text
    assert "Submission(" not in caplog.text
    assert served.bridge.open_sequences == 0


def test_outcomes_are_counted_by_route(serve):
    def count(outcome: str) -> float:
        labels = {"route": "/v1/chat/completions", "outcome": outcome}
        return REGISTRY.get_sample_value("languagepipes_requests_total", labels) or 0.0

    served = serve("Hello")
    before = {outcome: count(outcome) for outcome in ("ok", "invalid")}
    first_tokens = REGISTRY.get_sample_value("languagepipes_time_to_first_token_seconds_count") or 0
    served.client.chat.completions.create(model="tiny", messages=HI)
    with contextlib.suppress(openai.BadRequestError):
        served.client.chat.completions.create(model="tiny", messages=HI, n=0)
    assert count("ok") == before["ok"] + 1
    assert count("invalid") == before["invalid"] + 1
    assert REGISTRY.get_sample_value("languagepipes_time_to_first_token_seconds_count") == first_tokens + 1


@pytest.mark.parametrize("route", ["chat/completions", "completions", "responses", "messages"])
def test_refusals_of_a_full_queue_are_counted_from_zero(serve, route):
    """Prometheus sees no increase in a series that begins with its first count."""
    serve("Hello")
    labels = {"route": f"/v1/{route}", "outcome": "queue_full"}
    assert REGISTRY.get_sample_value("languagepipes_requests_total", labels) is not None


def test_stopping_the_server_lets_running_answers_end(serve):
    served = serve("The quick brown fox jumps over the lazy dog", pace_seconds=0.02)
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
        next(stream)
        stopper = threading.Thread(target=served.server.stop)
        stopper.start()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    stopper.join()
    assert text == "The quick brown fox jumps over the lazy dog"
    with pytest.raises(openai.APIConnectionError):
        served.client.chat.completions.create(model="tiny", messages=HI)


def test_an_answer_that_a_stopping_server_cuts_off_does_not_count_as_ok(serve, codec):
    def count(outcome: str) -> float:
        labels = {"route": "/v1/chat/completions", "outcome": outcome}
        return REGISTRY.get_sample_value("languagepipes_requests_total", labels) or 0.0

    served = serve(forever(codec), pace_seconds=0.02, max_context_length=100_000)
    before = {outcome: count(outcome) for outcome in ("ok", "cancelled")}
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
        next(stream)
        served.server.stop()
    assert {outcome: count(outcome) - before[outcome] for outcome in before} == {"ok": 0, "cancelled": 1}
