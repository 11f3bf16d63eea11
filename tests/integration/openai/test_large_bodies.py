"""Large bodies are parsed and validated beside the event loop, and answered as small ones are."""

from __future__ import annotations

import threading

import httpx
import pytest
from languagepipes_node.end_model.openai import message_schemas, schemas
from languagepipes_node.end_model.openai.messages import blocks
from languagepipes_node.end_model.openai.responses import items
from support import chat_templates
from support.scripted_engine import saying
from support.tool_model import codec_of

QUESTION = {"role": "user", "content": "Weather?"}
# Each route's messages, and a function that reads a part of them.
ROUTES = {
    "/v1/chat/completions": ("messages", message_schemas, "_message"),
    "/v1/completions": ("prompt", schemas, "_is_token"),
    "/v1/responses": ("input", items, "_item"),
    "/v1/messages": ("messages", blocks, "_message"),
    "/v1/messages/count_tokens": ("messages", blocks, "_message"),
    "/tokenize": ("messages", message_schemas, "_message"),
}
EVERY_ROUTE = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture
def hermes(serve):
    codec = codec_of(chat_templates.HERMES)
    return serve(saying(codec, "Sunny."), codec=codec, max_context_length=1 << 18)


def body_of(route: str, size: int) -> dict:
    field, _, _ = ROUTES[route]
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "x" * 32}] * (size // 128)
    value = [1] * (size // 2) if field == "prompt" else [*messages, QUESTION]
    body = {"model": "tiny", field: value}
    if "count" not in route and route != "/tokenize":
        body |= {"max_output_tokens": 4} if field == "input" else {"max_tokens": 4}
    return body


def refusal(response: httpx.Response) -> dict:
    return response.json()["error"]


@EVERY_ROUTE
def test_a_large_body_is_validated_in_a_thread_of_its_own(hermes, monkeypatch, route):
    _, module, name = ROUTES[route]
    original, threads = getattr(module, name), set()

    def recorded(*arguments):
        threads.add(threading.current_thread().name)
        return original(*arguments)

    monkeypatch.setattr(module, name, recorded)
    used = []
    for size in (1024, 100_000):
        threads.clear()
        response = httpx.post(f"{hermes.url}{route}", json=body_of(route, size), timeout=60)
        assert response.status_code == 200, response.text
        used.append({thread.startswith("tokenise") for thread in threads})
    assert used == [{False}, {True}]


@EVERY_ROUTE
def test_what_is_wrong_with_a_large_body_is_told_as_of_a_small_one(hermes, route):
    field, _, _ = ROUTES[route]
    for change in ({field: 5}, {"temperatura": 1}, {"model": 3}, {"model": "other", field: 5}, {field: None}):
        answers = []
        for size in (1024, 100_000):
            body = {**body_of(route, size), "metadata": None, **change}
            if size > 1024:
                body["padding"] = None
                raw = httpx.Request("POST", "http://x", json=body).content[:-1] + b" " * 100_000 + b"}"
            else:
                raw = httpx.Request("POST", "http://x", json=body).content
            answers.append(
                httpx.post(f"{hermes.url}{route}", content=raw, headers={"content-type": "application/json"})
            )
        small, large = answers
        assert small.status_code == large.status_code >= 400, change
        assert refusal(small) == refusal(large), change
    for raw in (b"[" + b" " * 100_000 + b"]", b"{" + b" " * 100_000, b'{"a": ' + b" " * 100_000 + b"1,}"):
        response = httpx.post(
            f"{hermes.url}{route}", content=raw, headers={"content-type": "application/json"}, timeout=60
        )
        assert response.status_code == 400, raw[:10]
        assert "body is" in refusal(response)["message"]
    assert hermes.engine.submissions == []
