"""`echo`: the prompt before its answer, with its log probabilities, as evaluation harnesses ask for them."""

from __future__ import annotations

import httpx
import pytest


def ask(served, **body):
    body = {"model": "tiny", "prompt": "hello world", **body}
    response = httpx.post(served.url + "/v1/completions", json=body, timeout=60)  # the longest prompt takes seconds
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hello world", "hello<|im_end|> world", "Thé 🎉"])
def test_the_prompt_comes_first(serve, prompt, stream):
    served = serve(" and more")
    answer = served.client.completions.create(
        model="tiny", prompt=[prompt, "x"], n=2, echo=True, max_tokens=50, stream=stream
    )
    texts = ["", "", "", ""]
    for choice in [chunk.choices[0] for chunk in answer] if stream else answer.choices:
        texts[choice.index] += choice.text
    assert texts == [f"{prompt} and more"] * 2 + ["x and more"] * 2
    assert all(submission.prompt_logprobs is None for submission in served.engine.submissions)


def test_token_ids_are_echoed_as_their_text(serve):
    served = serve("!")
    assert ask(served, prompt=list(served.codec.encode("hello")), echo=True)["choices"][0]["text"] == "hello!"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hello world", "h", "hello<|im_end|> world", "The quick brown fox. " * 30])
def test_each_token_of_prompt_and_answer_has_its_numbers(serve, prompt, stream):
    served = serve(" and more")
    codec = served.codec
    answer = served.client.completions.create(
        model="tiny", prompt=prompt, echo=True, logprobs=2, max_tokens=50, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    text = "".join(choice.text for choice in choices)
    parts = [choice.logprobs for choice in choices if choice.logprobs is not None]
    tokens = [token for part in parts for token in part.tokens]
    numbers = [number for part in parts for number in part.token_logprobs]
    tops = [top for part in parts for top in part.top_logprobs]
    offsets = [offset for part in parts for offset in part.text_offset]
    prompt_ids, answer_ids = codec.encode(prompt), codec.encode(" and more")
    assert text == prompt + " and more"
    assert tokens == [codec.token_name(token) for token in (*prompt_ids, *answer_ids)]
    assert numbers == [None, *(-float(place) for place in range(1, len(prompt_ids))), *[-0.25] * len(answer_ids)]
    assert tops[0] is None
    for top, token, number in zip(tops[1:], tokens[1:], numbers[1:], strict=True):
        assert len(top) == 2
        assert top[token] == number
    assert all(text.startswith(token, offset) for token, offset in zip(tokens, offsets, strict=True))
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("stream", [False, True])
def test_no_answer_is_generated_with_max_tokens_zero(serve, stream):
    served = serve(" and more")
    answer = served.client.completions.create(
        model="tiny",
        prompt="hello world",
        echo=True,
        logprobs=1,
        max_tokens=0,
        stream=stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    chunks = list(answer) if stream else [answer]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == "hello world"
    assert choices[-1].finish_reason == "length"
    scored = [number for choice in choices if choice.logprobs for number in choice.logprobs.token_logprobs]
    assert len(scored) == len(served.codec.encode("hello world"))
    assert chunks[-1].usage.completion_tokens == 0
    assert ask(served, max_tokens=0)["choices"][0]["text"] == ""


def test_a_harness_gets_the_greedy_flag_and_the_sum_that_it_computes(serve):
    # What lm-evaluation-harness sends for a log-likelihood, and how it reads the answer.
    served = serve(" and more")
    codec = served.codec
    context, continuation = codec.encode("hello"), codec.encode(" world")
    body = {"prompt": [[*context, *continuation]], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    logprobs = ask(served, seed=1234, **body)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(context) + len(continuation) + 1
    own = slice(len(context), -1)
    assert sum(logprobs["token_logprobs"][own]) == -sum(range(len(context), len(context) + len(continuation)))
    for token, top in zip(logprobs["tokens"][own], logprobs["top_logprobs"][own], strict=True):
        assert max(top, key=top.get) == token


def test_a_truncated_prompt_is_echoed_as_it_was_used(serve):
    served = serve("!")
    codec = served.codec
    text = ask(served, prompt="hello wide world", echo=True, truncate_prompt_tokens=2)["choices"][0]["text"]
    assert text == codec.decode(codec.encode("hello wide world")[-2:]) + "!"


@pytest.mark.parametrize("more", [{"prompt": [[5] * 2048] * 65}, {"prompt": [[5] * 2048] * 13, "n": 5}])
def test_prompts_whose_numbers_would_not_fit_the_memory_are_refused(serve, more):
    served = serve("!", max_context_length=4096)
    body = {"model": "tiny", "echo": True, "logprobs": 1, "max_tokens": 1, **more}
    answer = httpx.post(served.url + "/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "prompt"
    assert "log probabilities of 133120 prompt tokens" in error["message"]
    assert "at most 131072 in one request: send fewer prompts" in error["message"]
    assert not served.engine.submissions


def test_a_prompt_that_fits_the_context_has_its_numbers_however_long_it_is(serve):
    served = serve("!", max_context_length=140_000)
    answer = ask(served, prompt=[5] * 132_000, echo=True, logprobs=0, max_tokens=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 132_000
