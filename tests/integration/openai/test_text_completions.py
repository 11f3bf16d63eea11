"""/v1/completions through the openai client."""

from __future__ import annotations

import pytest


def test_a_prompt_is_continued(serve):
    served = serve(" world")
    answer = served.client.completions.create(model="tiny", prompt="hello", max_tokens=50)
    assert answer.choices[0].text == " world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "text_completion"
    assert served.engine.submissions[0].prompt == served.codec.encode("hello")


def test_sixteen_tokens_are_the_default(serve):
    served = serve(" world")
    served.client.completions.create(model="tiny", prompt="hello")
    assert served.engine.submissions[0].max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", ["hello"]),
        (["hello", " world"], ["hello", " world"]),
        ([50, 51], [(50, 51)]),
        ([[50, 51], [52]], [(50, 51), (52,)]),
    ],
)
def test_a_prompt_comes_in_four_shapes(serve, prompt, expected):
    served = serve("x")
    answer = served.client.completions.create(model="tiny", prompt=prompt)
    wanted = [served.codec.encode(one) if isinstance(one, str) else one for one in expected]
    assert [submission.prompt for submission in served.engine.submissions] == wanted
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    assert answer.usage.prompt_tokens == sum(map(len, wanted))


def test_n_and_several_prompts_multiply(serve):
    served = serve("x")
    answer = served.client.completions.create(model="tiny", prompt=["hello", "world"], n=2, seed=3)
    prompts = [submission.prompt for submission in served.engine.submissions]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert [submission.sampling.seed for submission in served.engine.submissions] == [3, 4, 3, 4]
    assert len(answer.choices) == 4


def test_a_stream_says_the_same_piece_by_piece(serve):
    served = serve("The quick brown fox")
    chunks = list(
        served.client.completions.create(
            model="tiny", prompt="hello", max_tokens=99, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "The quick brown fox"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens


def test_log_probabilities_come_in_the_old_shape(serve):
    served = serve("The fox")
    answer = served.client.completions.create(model="tiny", prompt="hello", logprobs=2, max_tokens=99)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == "The fox"
    assert logprobs.token_logprobs == [-0.25] * len(logprobs.tokens)
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
