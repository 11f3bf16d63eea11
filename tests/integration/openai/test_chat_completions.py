"""/v1/chat/completions through the openai client, as its users see it."""

from __future__ import annotations

import asyncio

import openai
import pytest
from support.scripted_engine import forever

QUESTION = [{"role": "user", "content": "hello"}]


def test_an_answer_comes_whole_with_its_usage(serve):
    served = serve("Hello world, how are you?")
    answer = served.client.chat.completions.create(model="tiny", messages=QUESTION)
    assert answer.choices[0].message.content == "Hello world, how are you?"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "tiny"
    assert answer.object == "chat.completion"
    assert answer.system_fingerprint == "fp_test"
    assert answer.id.startswith("chatcmpl-")
    prompt = len(served.engine.submissions[0].prompt)
    generated = len(served.codec.encode("Hello world, how are you?")) + 1
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.completion_tokens == generated
    assert answer.usage.total_tokens == prompt + generated


def test_a_stream_says_the_same_piece_by_piece(serve):
    served = serve("Hello world, how are you?")
    chunks = list(served.client.chat.completions.create(model="tiny", messages=QUESTION, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world, how are you?"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len(chunks) > 5
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_the_usage_if_asked_for(serve):
    served = serve("Hello")
    chunks = list(
        served.client.chat.completions.create(
            model="tiny", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(served.codec.encode("Hello")) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_reaches_its_limit_says_so(serve, name):
    served = serve(lambda submission: forever(served.codec)(submission))
    answer = served.client.chat.completions.create(model="tiny", messages=QUESTION, **{name: 7})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 7


def test_without_a_limit_an_answer_may_fill_the_context(serve):
    served = serve(max_context_length=100)
    served.client.chat.completions.create(model="tiny", messages=QUESTION)
    submission = served.engine.submissions[0]
    assert submission.max_tokens == 100 - len(submission.prompt)


def test_sampling_parameters_reach_the_engine_unchanged(serve):
    served = serve()
    served.client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0.5,
        top_p=0.9,
        seed=17,
        presence_penalty=1,
        frequency_penalty=-0.5,
        logit_bias={"5": -100, "7": 3.5},
        extra_body={"top_k": 40, "min_p": 0.05},
    )
    sampling = served.engine.submissions[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.05)
    assert (sampling.seed, sampling.presence_penalty, sampling.frequency_penalty) == (17, 1.0, -0.5)
    assert sampling.logit_bias == ((5, -100.0), (7, 3.5))
    assert served.engine.submissions[0].stop_token_ids == {0, 2}


def test_parameters_that_ask_for_nothing_are_accepted(serve):
    served = serve("Hello")
    answer = served.client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hi", "refusal": None},
            *QUESTION,
        ],
        n=1,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        stop=None,
        user="somebody",
        metadata={},
        store=False,
        logprobs=False,
        max_tokens=None,
        temperature=None,
        extra_body={"top_k": -1},
    )
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].logprobs is None


def test_n_answers_come_with_their_own_index_and_seed(serve):
    served = serve("Hello world")
    answer = served.client.chat.completions.create(model="tiny", messages=QUESTION, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"Hello world"}
    assert [submission.sampling.seed for submission in served.engine.submissions] == [5, 6, 7]
    assert answer.usage.prompt_tokens == len(served.engine.submissions[0].prompt)
    chunks = list(served.client.chat.completions.create(model="tiny", messages=QUESTION, n=2, stream=True))
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "Hello world"
        assert own[-1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_shown(serve, stream):
    served = serve("The quick brown fox jumps over the lazy dog", pace_seconds=0.002)
    answer = served.client.chat.completions.create(
        model="tiny", messages=QUESTION, stop=["wn fox ju", "zzz"], stream=stream
    )
    if stream:
        chunks = list(answer)
        text, finish = (
            "".join(c.choices[0].delta.content or "" for c in chunks),
            chunks[-1].choices[0].finish_reason,
        )
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, finish) == ("The quick bro", "stop")
    served.wait_until_idle()
    assert len(served.engine.cancellations) == 1


def test_text_that_only_begins_like_a_stop_string_is_shown_in_the_end(serve):
    served = serve("I am fine, thank")
    chunks = list(served.client.chat.completions.create(model="tiny", messages=QUESTION, stop="thank you", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "I am fine, thank"


def test_no_chunk_ever_holds_half_a_character(serve):
    text = "naïve 東京 🧠 🎉 👩‍👩‍👧‍👦 🇫🇷 ok"
    served = serve(text)
    chunks = list(served.client.chat.completions.create(model="tiny", messages=QUESTION, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_cut_short_by_the_limit_is_shown_as_replaced(serve):
    served = serve("🧠")
    assert len(served.codec.encode("🧠")) > 1
    answer = served.client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=1)
    assert answer.choices[0].message.content == "\ufffd"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_with_tokens_and_their_bytes(serve, stream):
    served = serve("Hello 🎉")
    answer = served.client.chat.completions.create(
        model="tiny", messages=QUESTION, logprobs=True, top_logprobs=3, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    content = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert bytes(byte for token in content for byte in token.bytes) == "Hello 🎉".encode()
    assert len(content) == len(served.codec.encode("Hello 🎉"))
    assert all(token.logprob == -0.25 and len(token.top_logprobs) == 3 for token in content)
    assert content[0].top_logprobs[2].logprob == -9999.0


def test_log_probabilities_end_where_the_text_does(serve):
    served = serve("The quick brown fox")
    answer = served.client.chat.completions.create(model="tiny", messages=QUESTION, logprobs=True, stop=" fox")
    text = "".join(token.token for token in answer.choices[0].logprobs.content)
    assert answer.choices[0].message.content == "The quick brown"
    assert text == "The quick brown"


def test_content_may_come_as_text_parts_and_developers_speak_as_the_system(serve):
    served = serve()
    served.client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}],
            },
        ],
    )
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello\nworld<|im_end|>\n<|im_start|>assistant\n"
    )
    assert served.engine.submissions[0].prompt == served.codec.encode(expected, add_special_tokens=False)


def test_ignore_eos_leaves_no_token_to_stop_at(serve):
    served = serve(lambda submission: forever(served.codec)(submission))
    served.client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=3, extra_body={"ignore_eos": True}
    )
    assert served.engine.submissions[0].stop_token_ids == frozenset()


def test_sixteen_clients_connect_at_once_and_all_are_answered(serve):
    served = serve("Hello world, how are you?", pace_seconds=0.005)

    async def ask(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_at_once() -> list[str]:
        clients = [openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) for _ in range(16)]
        try:
            return await asyncio.gather(*map(ask, clients))
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    assert asyncio.run(all_at_once()) == ["Hello world, how are you?"] * 16
    served.wait_until_idle()


def test_models_lists_the_one_that_is_served(serve):
    served = serve()
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    assert served.client.models.retrieve("tiny").owned_by == "languagepipes"
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other/model")
