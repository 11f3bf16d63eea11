"""Who is admitted is decided before prompts are tokenised, and one client's prompts do not hold up another's."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from languagepipes_node.end_model.openai.auth import ApiKeys
from support.scripted_engine import forever
from support.waiting import eventually

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
# Whoever tokenised one of these would answer 400.
HOPELESS = [
    (CHAT, {"model": "tiny", "messages": [{"role": "user", "content": "a hundred words " * 200}]}, "messages"),
    (TEXT, {"model": "tiny", "prompt": "a hundred words " * 200}, "prompt"),
    (TEXT, {"model": "tiny", "prompt": ["hi", "a hundred words " * 200]}, "prompt"),
]


@pytest.fixture
def keys(tmp_path):
    for name in ("alice", "bob"):
        (tmp_path / name).write_text(f"key-of-{name}")
    return ApiKeys(tmp_path)


def as_user(name):
    return {"authorization": f"Bearer key-of-{name}"}


@pytest.mark.parametrize(("path", "body", "param"), HOPELESS)
def test_a_full_server_says_so_before_it_looks_at_the_prompt(serve, codec, path, body, param):
    served = serve(forever(codec), max_sequences=2, max_context_length=400, pace_seconds=0.02)
    wanted = {**HI, "n": 2, "stream": True}
    with httpx.stream("POST", served.url + CHAT, json=wanted) as other:
        assert other.status_code == 200
        full = httpx.post(served.url + path, json=body)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    served.wait_until_idle()
    refused = httpx.post(served.url + path, json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)


def test_requests_that_are_refused_give_their_seats_back(serve):
    served = serve("hello", max_sequences=2, max_context_length=64)
    wrong = [*((path, body) for path, body, _ in HOPELESS), (TEXT, {"model": "tiny", "prompt": [999]})]
    wrong.append((TEXT, {"model": "tiny", "prompt": "hi", "stream_options": {"include_usage": True}}))
    for path, body in wrong * 2:
        assert httpx.post(served.url + path, json=body).status_code == 400
    assert served.bridge.open_sequences == 0
    assert httpx.post(served.url + TEXT, json={"model": "tiny", "prompt": ["hi", "ho"]}).status_code == 200
    served.wait_until_idle()


def test_a_prompt_too_long_by_its_bytes_is_refused_without_being_tokenised(serve, codec):
    served = serve("hello", max_context_length=16)
    text = "The quick brown fox jumps over the lazy dog. " * 10_000
    least = codec.least_tokens(text)
    answer = httpx.post(served.url + TEXT, json={"model": "tiny", "prompt": text})
    assert answer.status_code == 400
    assert answer.json()["error"] == {
        "message": f"This model's maximum context length is 16 tokens, and the prompt has at least {least}, which"
        " leaves no room for an answer. Please shorten the prompt.",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "context_length_exceeded",
    }
    assert least < len(codec.encode(text))  # the number shows that nobody counted


class HeldWork:
    """Occupies all that one client may have of a server's workers, until the block ends."""

    def __init__(self, served, client):
        workers = served.server._server.config.app.state.service.workers
        self._begun, self._end = threading.Event(), threading.Event()

        def hold():
            self._begun.set()
            self._end.wait(60)

        loop = served.bridge._loop
        asyncio.run_coroutine_threadsafe(workers.run(client, hold), loop)
        assert self._begun.wait(20)
        self.workers = workers

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._end.set()


def test_one_keys_prompts_do_not_hold_up_anothers_and_each_has_an_opaque_client(serve, keys):
    served = serve("hello", api_keys=keys, max_sequences=8)
    for name in ("alice", "bob", "alice"):
        assert httpx.post(served.url + CHAT, json=HI, headers=as_user(name)).status_code == 200
    alice, bob, again = (submission.client for submission in served.engine.submissions)
    assert alice == again != bob
    assert "alice" not in alice
    answers = []

    def ask():
        answers.append(httpx.post(served.url + CHAT, json=HI, headers=as_user("alice"), timeout=60).status_code)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    with HeldWork(served, alice) as held:
        for thread in asking:
            thread.start()
        eventually(lambda: held.workers.waiting == 3)
        assert httpx.post(served.url + CHAT, json=HI, headers=as_user("bob"), timeout=60).status_code == 200
        assert (held.workers.waiting, answers) == (3, [])
    for thread in asking:
        thread.join(60)
    assert answers == [200] * 3


def test_a_client_that_leaves_before_its_prompt_is_read_gives_its_seat_back(serve):
    served = serve("hello", max_sequences=8)
    httpx.post(served.url + CHAT, json=HI)
    client = served.engine.submissions[0].client
    with HeldWork(served, client) as held:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(served.url + CHAT, json=HI, timeout=0.5)
        eventually(lambda: served.bridge.open_sequences == 0)
        assert held.workers.waiting == 0
    assert len(served.engine.submissions) == 1
    assert httpx.post(served.url + CHAT, json=HI).status_code == 200
