"""A server that is going down: what was begun is answered, what comes is refused, what is late ends with an error."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import httpx
import openai
import pytest
from languagepipes_node.end_model.main import drain
from support.scripted_engine import forever, saying

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def draining():
    """Starts the drain of a server in a thread: draining(served, seconds)."""
    threads = []

    def start(served, seconds, **more):
        limits = {"until": time.monotonic() + seconds, **more}
        thread = threading.Thread(target=drain, args=(served.bridge, served.server), kwargs=limits)
        thread.start()
        threads.append(thread)
        while served.bridge.draining is None:
            time.sleep(0.01)
        return thread

    yield start
    for thread in threads:
        thread.join()


def test_what_was_begun_is_answered_and_what_comes_is_refused(serve, codec, draining):
    served = serve(saying(codec, "Hello world, how are you?"), pace_seconds=0.05)
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
        next(stream)
        thread = draining(served, 20)
        refused = httpx.post(f"{served.url}/v1/chat/completions", json={"model": "tiny", "messages": HI})
        assert refused.status_code == 503
        assert refused.json()["error"] == {
            "message": "the server is shutting down: ask again",
            "type": "server_error",
            "param": None,
            "code": "shutting_down",
        }
        assert refused.headers["connection"] == "close"
        assert int(refused.headers["retry-after"]) > 0
        ready = httpx.get(f"{served.url}/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "the server is shutting down: ask again")
        assert httpx.get(f"{served.url}/healthz").status_code == 200
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text.endswith("how are you?")
    thread.join(5)
    assert not thread.is_alive()


def test_what_is_late_ends_with_an_error(serve, codec, draining):
    served = serve(forever(codec), pace_seconds=0.02, max_context_length=100_000)
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
        next(stream)
        draining(served, 0.5)
        with pytest.raises(openai.APIError, match="this answer was not complete in time") as error:
            list(stream)
        assert error.value.code == "shutting_down"
    served.wait_until_idle()


def test_a_ring_that_stays_down_is_not_waited_for_to_the_end(serve, codec, draining):
    served = serve(forever(codec), pace_seconds=0.02, max_context_length=100_000)
    with served.client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
        next(stream)
        served.engine.status = replace(served.engine.status, ring_ready=False, ring_error="stage 1 is gone")
        draining(served, 600, ring_lost_seconds=0.5)
        with pytest.raises(openai.APIError, match="this answer was not complete in time"):
            list(stream)
    served.wait_until_idle()


def test_an_answer_that_is_not_streamed_and_late_is_a_503(serve, codec, draining):
    served = serve(forever(codec), pace_seconds=0.02, max_context_length=100_000)
    answers = []

    def ask():
        answers.append(
            httpx.post(
                f"{served.url}/v1/completions", json={"model": "tiny", "prompt": "hi", "n": 2, "max_tokens": 10_000}
            )
        )

    asking = threading.Thread(target=ask)
    asking.start()
    while len(served.engine.submissions) < 2:
        time.sleep(0.01)
    draining(served, 0.3)
    asking.join(10)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "shutting_down"
    assert answers[0].headers["connection"] == "close"
    served.wait_until_idle()


def test_an_idle_server_is_through_at_once(serve, draining):
    served = serve()
    started = time.monotonic()
    draining(served, 20).join()
    assert time.monotonic() - started < 1
