"""`prompt_logprobs`, vLLM's: each token of a prompt with its log probability and rank, and the likeliest ones."""

from __future__ import annotations

import httpx
import pytest

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello world"}]})
TEXT = ("/v1/completions", {"prompt": "hello world", "max_tokens": 50})


def ask(served, route, **body):
    return httpx.post(served.url + route, json={"model": "tiny", **body})


def expected(codec, prompt, alternatives):
    """What the scripted engine says: token i has -i, and the next id is the second-likeliest."""
    entries = [None]
    for place, token in enumerate(prompt[1:], start=1):
        named = [(token, -float(place), 1), (token + 1, -float(place) - 1, 2)][: max(1, alternatives)]
        entries.append(
            {
                str(number): {
                    "logprob": logprob,
                    "rank": rank,
                    "decoded_token": codec.token_bytes(number).decode(errors="replace"),
                }
                for number, logprob, rank in named
            }
        )
    return entries


@pytest.mark.parametrize("alternatives", [0, 1, 2])
def test_a_chat_has_those_of_its_prompt_once(serve, alternatives):
    served = serve("Hi")
    answer = ask(served, CHAT[0], **CHAT[1], n=2, prompt_logprobs=alternatives).json()
    prompt = served.engine.submissions[0].prompt
    assert answer["prompt_logprobs"] == expected(served.codec, prompt, alternatives)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Hi", "Hi"]
    assert not any("prompt_logprobs" in choice for choice in answer["choices"])
    assert [submission.prompt_logprobs for submission in served.engine.submissions] == [alternatives, None]


def test_each_choice_of_a_completion_has_those_of_its_prompt(serve):
    served = serve("Hi")
    answer = ask(served, TEXT[0], **{**TEXT[1], "prompt": ["hello world", "h"]}, n=2, prompt_logprobs=1).json()
    prompts = [served.codec.encode(text) for text in ("hello world", "h")]
    found = [choice["prompt_logprobs"] for choice in answer["choices"]]
    assert found == [expected(served.codec, prompts[place // 2], 1) for place in range(4)]
    assert found[2] == [None]
    assert "prompt_logprobs" not in answer


def test_the_best_of_several_answers_have_them_too(serve):
    served = serve("Hi", logprob=lambda request_id: -0.25 * request_id)
    answer = ask(served, TEXT[0], **TEXT[1], best_of=3, n=2, prompt_logprobs=1).json()
    prompt = served.codec.encode("hello world")
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [expected(served.codec, prompt, 1)] * 2


@pytest.mark.parametrize(("echoed", "alternatives"), [(2, 0), (0, 2), (None, 2)])
def test_an_echo_shows_as_many_as_it_was_asked_for_and_no_more(serve, echoed, alternatives):
    served = serve("Hi")
    body = {**TEXT[1], "echo": True, "prompt_logprobs": alternatives}
    (choice,) = ask(served, TEXT[0], **body, **({} if echoed is None else {"logprobs": echoed})).json()["choices"]
    prompt = served.codec.encode("hello world")
    assert choice["text"] == "hello worldHi"
    assert choice["prompt_logprobs"] == expected(served.codec, prompt, alternatives)
    if echoed is None:
        assert choice["logprobs"] is None
    else:
        tops = choice["logprobs"]["top_logprobs"][1 : len(prompt)]
        assert {len(top) for top in tops} == {max(1, echoed)}


def test_nothing_need_be_generated_for_them(serve):
    served = serve("Hi")
    answer = ask(served, TEXT[0], prompt="hello world", max_tokens=0, prompt_logprobs=0).json()
    assert answer["choices"][0]["text"] == ""
    assert answer["choices"][0]["prompt_logprobs"] == expected(served.codec, served.codec.encode("hello world"), 0)
    assert answer["usage"]["completion_tokens"] == 0


def test_with_token_ids_both_stand_in_the_answer(serve):
    served = serve("Hi")
    answer = ask(served, CHAT[0], **CHAT[1], prompt_logprobs=0, return_token_ids=True).json()
    assert [int(next(iter(entry))) for entry in answer["prompt_logprobs"][1:]] == answer["prompt_token_ids"][1:]


def test_more_numbers_than_memory_holds_are_refused(serve):
    served = serve("Hi", max_context_length=65536)
    answer = ask(served, TEXT[0], prompt=[[5] * 40000], max_tokens=1, prompt_logprobs=20)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("prompt_logprobs", "invalid_value")
    assert (
        "840000 log probabilities (40000 prompt tokens with 20 alternatives each), at most 786432" in error["message"]
    )
    assert ask(served, TEXT[0], prompt=[[5] * 2000], max_tokens=1, prompt_logprobs=2).status_code == 200
