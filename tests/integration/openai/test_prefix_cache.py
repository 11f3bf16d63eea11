"""Who shares what prompts begin with, and how `usage` counts it, through the real API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from languagepipes_node.end_model.openai.auth import ApiKeys
from support.scripted_engine import Served
from support.smollm2_server import SmolLM2Server, serving_smollm2

LONG = "The harbour of the old town lies behind a breakwater of grey stone, where boats wait for the tide. " * 8
LATER = "And now the other way round, please."


@pytest.fixture(scope="module")
def served() -> Iterator[SmolLM2Server]:
    with serving_smollm2() as server:
        yield server


def post(served: SmolLM2Server, route: str, **fields: Any) -> dict[str, Any]:
    response = httpx.post(f"{served.url}/v1/{route}", json={"model": "smollm2", **fields}, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": text}, {"role": "user", "content": "Hello"}]


def cached(usage: dict[str, Any]) -> int:
    details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
    count: int = details["cached_tokens"]
    return count


def test_the_next_turn_of_a_chat_finds_the_first_and_its_answer(served: SmolLM2Server) -> None:
    messages = chat("Turns. " + LONG)
    options = {"max_tokens": 40, "temperature": 0, "ignore_eos": True}
    first = post(served, "chat/completions", messages=messages, **options)
    message = first["choices"][0]["message"]
    messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": LATER}]
    second = post(served, "chat/completions", messages=messages, **options)
    assert cached(first["usage"]) < 64  # the chat template's own beginning, perhaps
    assert cached(second["usage"]) > first["usage"]["prompt_tokens"] - 32


def test_a_text_again_is_answered_the_same(served: SmolLM2Server) -> None:
    body = {"prompt": "Again. " + LONG, "max_tokens": 12, "temperature": 1, "seed": 3}
    first, second = (post(served, "completions", **body) for _ in range(2))
    assert (cached(first["usage"]), cached(second["usage"])) == (0, first["usage"]["prompt_tokens"] // 32 * 32)
    assert first["choices"] == second["choices"]


def test_answers_to_one_prompt_count_what_the_first_of_them_found(served: SmolLM2Server) -> None:
    usage = post(served, "completions", prompt="Choices. " + LONG, max_tokens=2, n=4)["usage"]
    assert cached(usage) == 0
    assert cached(post(served, "completions", prompt="Choices. " + LONG, max_tokens=2, n=4)["usage"]) > 100


def test_an_echo_with_scores_computes_its_prompt(served: SmolLM2Server) -> None:
    body = {"prompt": "Echo. " + LONG, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    first, second = (post(served, "completions", **body) for _ in range(2))
    assert cached(second["usage"]) == 0
    assert first["choices"] == second["choices"]


def test_only_requests_with_the_same_salt_share(served: SmolLM2Server) -> None:
    found = [
        cached(post(served, "completions", prompt="Salt. " + LONG, max_tokens=1, **fields)["usage"])
        for fields in ({"cache_salt": "a"}, {"cache_salt": "b"}, {}, {"cache_salt": "a"})
    ]
    assert found[:3] == [0, 0, 0]
    assert found[3] > 100
    response = httpx.post(
        f"{served.url}/v1/completions", json={"model": "smollm2", "prompt": "Hi", "cache_salt": ""}, timeout=60
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "cache_salt"


def test_responses_and_messages_count_it_as_their_references_say(served: SmolLM2Server) -> None:
    body = {"input": "Responses. " + LONG, "max_output_tokens": 2, "cache_salt": "responses"}
    first, second = (post(served, "responses", **body)["usage"] for _ in range(2))
    assert cached(first) == 0
    assert 100 < cached(second) < second["input_tokens"] == first["input_tokens"]
    body = {"messages": [{"role": "user", "content": "Messages. " + LONG}], "max_tokens": 2}
    first, second = (post(served, "messages", **body)["usage"] for _ in range(2))
    assert second["cache_read_input_tokens"] > 100
    assert second["input_tokens"] + second["cache_read_input_tokens"] == sum(
        first[name] for name in ("input_tokens", "cache_read_input_tokens")
    )


def test_a_stream_of_messages_counts_it_from_its_start(served: SmolLM2Server) -> None:
    body = {"messages": [{"role": "user", "content": "Stream. " + LONG}], "max_tokens": 2, "model": "smollm2"}
    post(served, "messages", **body)
    text = httpx.post(f"{served.url}/v1/messages", json={**body, "stream": True}, timeout=60).text
    counts = [part.split(",")[0].split("}")[0] for part in text.split('"cache_read_input_tokens":')[1:]]
    assert len(counts) == 2
    assert counts[0] == counts[1]
    assert int(counts[0]) > 100


def test_api_keys_share_nothing(serve: Callable[..., Served], tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        (tmp_path / name).write_text(f"sk-{name}")
    served = serve(api_keys=ApiKeys(tmp_path))
    for key, fields in (
        ("alice", {}),
        ("bob", {}),
        ("alice", {}),
        ("alice", {"cache_salt": "x"}),
        ("bob", {"cache_salt": "x"}),
    ):
        response = httpx.post(
            f"{served.url}/v1/completions",
            json={"model": "tiny", "prompt": "Hello", "max_tokens": 1, **fields},
            headers={"authorization": f"Bearer sk-{key}"},
        )
        assert response.status_code == 200
    domains = [submission.cache_domain for submission in served.engine.submissions]
    assert domains[0] == domains[2]
    assert len(set(domains)) == 4
    assert not any("sk-" in domain for domain in domains)
