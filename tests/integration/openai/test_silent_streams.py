"""Streams that have nothing to say for a while: headers and comments, which every client reads past."""

from __future__ import annotations

import http.client
import json
import time

import httpx
import openai
import pytest
from languagepipes_node.end_model.openai import generation
from languagepipes_node.end_model.requests import Failure

HI = [{"role": "user", "content": "hi"}]
ROUTES = {"/v1/chat/completions": {"messages": HI}, "/v1/completions": {"prompt": "hi"}}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(generation, "_SILENCE_SECONDS", 0.2)


def slow(codec, text="Hello world", *, first=0.7, between=0.0, then=()):
    """What an engine answers that takes `first` seconds to the first token."""

    def script(submission):
        for number, token in enumerate([*codec.encode(text), *then]):
            time.sleep(first if number == 0 else between)
            yield token
        yield from sorted(codec.stop_token_ids)[:1]

    return script


def blocks(served, route, **body):
    """The stream's blocks, and when each came, from the request on."""
    host, port = served.address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    started = time.monotonic()
    fields = json.dumps({"model": "tiny", "stream": True, **ROUTES[route], **body})
    connection.request("POST", route, fields, {"Content-Type": "application/json"})
    response = connection.getresponse()
    headers_after = time.monotonic() - started
    found, block = [], b""
    while line := response.readline():
        block += line
        if block.endswith(b"\n\n"):
            found.append((time.monotonic() - started, block[:-2]))
            block = b""
    connection.close()
    assert block == b""
    return response, headers_after, found


@pytest.mark.parametrize("route", ROUTES)
def test_headers_and_a_comment_come_after_a_silence(serve, codec, route):
    served = serve(slow(codec))
    response, headers_after, found = blocks(served, route)
    assert response.status == 200
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["content-type"].startswith("text/event-stream")
    assert 0.15 < headers_after < 0.6
    comments = [when for when, block in found if block.startswith(b":")]
    assert 2 <= len(comments) <= 4
    assert comments[0] == pytest.approx(headers_after, abs=0.1)
    events = [block for _, block in found if not block.startswith(b":")]
    assert all(event.startswith(b"data: ") for event in events)
    assert events[-1] == b"data: [DONE]"


def test_a_stream_that_speaks_sends_no_comment(serve, codec):
    served = serve(slow(codec, "Hello world how are you", first=0.05, between=0.05))
    _, _, found = blocks(served, "/v1/chat/completions")
    assert not [block for _, block in found if block.startswith(b":")]


def test_tokens_that_show_nothing_are_silence_too(serve, codec):
    """Text that may be the begin of a stop string is held back, while tokens arrive all the time."""
    served = serve(slow(codec, "hello hello hello hello", first=0.01, between=0.15))
    _, _, found = blocks(served, "/v1/completions", stop=["hello hello hello hello world"])
    assert [block for _, block in found if block.startswith(b":")]


def test_a_failure_after_a_comment_is_an_event(serve):
    served = serve(lambda submission: waiting_to_fail())
    _, _, found = blocks(served, "/v1/chat/completions")
    assert found[0][1].startswith(b":")
    assert json.loads(found[-1][1][6:])["error"]["code"] == "ring_down"


def waiting_to_fail():
    time.sleep(0.5)
    yield Failure(0, "ring_down", "stage 2 went away")


def test_an_answer_that_is_not_streamed_has_no_comment(serve, codec):
    served = serve(slow(codec))
    response = httpx.post(f"{served.url}/v1/chat/completions", json={"model": "tiny", "messages": HI})
    assert response.json()["choices"][0]["message"]["content"] == "Hello world"


def test_the_openai_client_reads_past_comments(serve, codec):
    served = serve(slow(codec, first=0.7))
    stream = served.client.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello world"


def test_the_openai_client_raises_what_follows_a_comment(serve):
    served = serve(lambda submission: waiting_to_fail())
    with pytest.raises(openai.APIError, match="stage 2 went away"):
        list(served.client.chat.completions.create(model="tiny", messages=HI, stream=True))
