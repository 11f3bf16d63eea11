"""vLLM's sampling and stopping parameters, and what they do to the text, as clients send them."""

from __future__ import annotations

import httpx
import pytest
from languagepipes_node.end_model.text import SamplingDefaults

QUESTION = [{"role": "user", "content": "hi"}]
END = 2  # which ends what the engine says


def ask(served, path: str = "/v1/completions", **body):
    good = {"prompt": "hello"} if path == "/v1/completions" else {"messages": QUESTION}
    response = httpx.post(served.url + path, json={"model": "tiny", "max_tokens": 50, **good, **body})
    assert response.status_code == 200, response.text
    return response.json()


def text_of(served, **body) -> str:
    return ask(served, **body)["choices"][0]["text"]


def ids_of(served, text: str) -> list[int]:
    return list(served.codec.encode(text))


def saying_tokens(tokens: list[int]):
    """An engine that answers these tokens, and those again."""

    def script(submission):
        while True:
            yield from tokens

    return script


def test_the_engine_gets_what_the_client_asks_for(serve):
    served = serve("x")
    ask(served, repetition_penalty=1.3, min_tokens=3, stop_token_ids=[7, 9], top_p=0)
    submission = served.engine.submissions[0]
    assert submission.sampling.repetition_penalty == 1.3
    assert submission.sampling.min_tokens == 3
    assert submission.sampling.top_p == 0
    assert submission.stop_token_ids == served.codec.stop_token_ids | {7, 9}
    ask(served, stop_token_ids=[7], ignore_eos=True, max_tokens=1)
    assert served.engine.submissions[1].stop_token_ids == {7}


def test_what_a_request_leaves_out_is_the_models_own_default(serve):
    defaults = SamplingDefaults(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, repetition_penalty=1.1, max_tokens=100
    )
    served = serve("x", defaults=defaults)
    path = "/v1/chat/completions"
    ask(served, path, max_tokens=None)
    ask(served, path, temperature=0, top_p=1, top_k=0, min_p=0, repetition_penalty=1, max_tokens=200)
    first, second = (submission.sampling for submission in served.engine.submissions)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.6, 0.95, 20, 0.01)
    assert first.repetition_penalty == 1.1
    assert (second.temperature, second.top_p, second.top_k, second.min_p) == (0, 1, 0, 0)
    assert second.repetition_penalty == 1
    assert [submission.max_tokens for submission in served.engine.submissions] == [100, 200]


def test_without_such_defaults_they_are_those_of_openai(serve):
    served = serve("x")
    ask(served)
    sampling = served.engine.submissions[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)


def test_a_stop_token_ends_the_answer_and_is_shown_on_request_alone(serve, codec):
    tokens = list(codec.encode("The quick brown fox"))
    served = serve(saying_tokens(tokens))
    last = codec.decode(tokens[-1:])
    answer = ask(served, stop_token_ids=[tokens[-1]])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] + last == "The quick brown fox"
    assert text_of(served, stop_token_ids=[tokens[-1]], include_stop_str_in_output=True) == "The quick brown fox"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_shown_on_request_alone(serve, stream):
    served = serve("The quick brown fox")
    for include, expected in ((False, "The quick"), (True, "The quick brown")):
        answer = served.client.completions.create(
            model="tiny",
            prompt="hi",
            max_tokens=50,
            stop=["zzz", " brown"],
            stream=stream,
            extra_body={"include_stop_str_in_output": include},
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == expected
        assert choices[-1].finish_reason == "stop"


def test_sixty_four_stop_strings_are_looked_for(serve):
    served = serve("The quick brown fox")
    assert text_of(served, stop=[*(f"never {number}" for number in range(63)), " fox"]) == "The quick brown"


def test_no_stop_string_is_looked_for_in_the_first_tokens(serve, codec):
    served = serve("The fox and the fox")
    first = len(codec.encode("The fox"))
    assert text_of(served, stop=" fox") == "The"
    assert text_of(served, stop=" fox", min_tokens=first) == "The fox and the"
    assert text_of(served, stop="fox and", min_tokens=first) == "The "


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_that_is_a_special_token_ends_the_answer(serve, codec, stream):
    end = codec.special_token("<|im_start|>")
    served = serve(saying_tokens([*codec.encode("The fox"), end]))
    for include, expected in ((False, "The fox"), (True, "The fox<|im_start|>")):
        answer = served.client.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            max_tokens=40,
            stop=["<|im_start|>"],
            stream=stream,
            extra_body={"ignore_eos": True, "include_stop_str_in_output": include},
        )
        if stream:
            choices = [chunk.choices[0] for chunk in answer]
            text = "".join(choice.delta.content or "" for choice in choices)
        else:
            choices = answer.choices
            text = choices[0].message.content
        assert (text, choices[-1].finish_reason) == (expected, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_may_hold_special_tokens_beside_text(serve, codec, stream):
    start = codec.special_token("<|im_start|>")
    tokens = [*codec.encode("a"), start, *codec.encode(" fox\n"), start, *codec.encode("user")]
    served = serve(saying_tokens(tokens))
    options = {
        "model": "tiny",
        "prompt": "hi",
        "max_tokens": 40,
        "stop": ["\n<|im_start|>us", "never"],
        "stream": stream,
    }
    for include, expected in ((False, "a fox"), (True, "a fox\n<|im_start|>us")):
        extra = {"include_stop_str_in_output": include}
        answer = served.client.completions.create(**options, logprobs=0, extra_body=extra)
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        assert "".join(choice.text for choice in choices) == expected
        assert choices[-1].finish_reason == "stop"
        offsets = [offset for choice in choices if choice.logprobs for offset in choice.logprobs.text_offset]
        assert offsets == sorted(offsets)


def test_special_tokens_are_text_on_request(serve, codec):
    special = codec.special_token("<|im_start|>")
    served = serve(saying_tokens([*codec.encode("a"), special, *codec.encode("b")]))
    assert text_of(served, max_tokens=3) == "ab"
    assert text_of(served, max_tokens=3, skip_special_tokens=False) == "a<|im_start|>b"


def test_token_ids_are_shown_on_request(serve):
    served = serve("The fox")
    prompt, tokens = ids_of(served, "hello"), ids_of(served, "The fox")

    choice = ask(served, return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == prompt
    assert choice["token_ids"] == [*tokens, END]
    chat = ask(served, "/v1/chat/completions", return_token_ids=True)
    assert chat["prompt_token_ids"] == list(served.engine.submissions[-1].prompt)
    assert chat["choices"][0]["token_ids"] == [*tokens, END]
    assert "token_ids" not in ask(served)["choices"][0]


@pytest.mark.parametrize("include_usage", [False, True])
def test_streams_show_token_ids_as_they_come(serve, include_usage):
    served = serve("Thé fox 🎉")
    tokens = [*ids_of(served, "Thé fox 🎉"), END]
    options = {"stream": True, "stream_options": {"include_usage": include_usage}, "max_tokens": 50}
    extra = {"return_token_ids": True}
    chunks = list(served.client.completions.create(model="tiny", prompt="hello", n=2, **options, extra_body=extra))
    for index in range(2):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert own[0].prompt_token_ids == ids_of(served, "hello")
        assert all(getattr(choice, "prompt_token_ids", None) is None for choice in own[1:])
        assert [token for choice in own for token in choice.token_ids] == tokens
        assert "".join(choice.text for choice in own) == "Thé fox 🎉"
    chat = list(served.client.chat.completions.create(model="tiny", messages=QUESTION, **options, extra_body=extra))
    assert chat[0].prompt_token_ids == list(served.engine.submissions[-1].prompt)
    shown = [getattr(chunk.choices[0], "token_ids", None) or [] for chunk in chat if chunk.choices]
    assert [token for some in shown for token in some] == tokens


def test_a_prompt_is_cut_to_its_last_tokens_on_request(serve):
    served = serve("x", max_context_length=64)
    long = "The quick brown fox " * 60
    last = served.codec.encode(long)
    ask(served, prompt=long, truncate_prompt_tokens=10, max_tokens=4)
    assert served.engine.submissions[-1].prompt == last[-10:]
    ask(served, prompt=long, truncate_prompt_tokens=-1, max_tokens=4)
    assert served.engine.submissions[-1].prompt == last[-60:]
    ask(served, prompt=[5] * 90, truncate_prompt_tokens=-1, max_tokens=14)
    assert served.engine.submissions[-1].prompt == (5,) * 50
    messages = [{"role": "user", "content": long}]
    ask(served, "/v1/chat/completions", messages=messages, truncate_prompt_tokens=7, max_tokens=4)
    assert len(served.engine.submissions[-1].prompt) == 7
    ask(served, truncate_prompt_tokens=30, max_tokens=4)
    assert served.engine.submissions[-1].prompt == served.codec.encode("hello")


def test_the_likeliest_of_several_answers_are_shown(serve, codec):
    texts = ["aaa", "bbbb", "cc", "d"]

    def script(submission):
        yield from codec.encode(texts[(submission.request_id - 1) % 4])
        yield END

    served = serve(script, logprob=lambda request_id: -[3.0, 1.0, 4.0, 2.0][(request_id - 1) % 4])
    answer = ask(served, best_of=4, n=2)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "bbbb"), (1, "d")]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    generated = sum(len(codec.encode(text)) + 1 for text in texts)
    assert answer["usage"]["completion_tokens"] == generated
    scored = ask(served, best_of=4, n=1, logprobs=1)["choices"]
    assert [choice["text"] for choice in scored] == ["bbbb"]
    assert scored[0]["logprobs"]["token_logprobs"] == [-1.0] * len(codec.encode("bbbb"))


def test_hints_change_nothing(serve):
    served = serve("x")
    hints = {
        "user": "u-1",
        "metadata": {"team": "search"},
        "store": False,
        "safety_identifier": "s-1",
        "prompt_cache_key": "k-1",
        "prompt_cache_retention": "24h",
        "service_tier": "auto",
    }
    plain, hinted = ask(served, seed=1), ask(served, seed=1, **hints)
    assert plain["choices"] == hinted["choices"]
    path = "/v1/chat/completions"
    for verbosity in ("low", "medium", "high"):
        assert ask(served, path, seed=1, **hints, verbosity=verbosity)["choices"] == ask(served, path)["choices"]


def test_usage_says_how_many_prompt_tokens_were_cached(serve):
    served = serve("x")
    assert ask(served)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    answer = served.client.chat.completions.create(model="tiny", messages=QUESTION)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
    ],
)
def test_a_priority_reaches_the_engine_where_the_server_takes_them(serve, route, fields):
    served = serve(takes_priorities=True)
    for priority in (-7, 0, 12):
        answer = httpx.post(served.url + route, json={"model": "tiny", "priority": priority, **fields})
        assert answer.status_code == 200, answer.text
    assert [submission.priority for submission in served.engine.submissions] == [-7, 0, 12]
    refused = httpx.post(serve().url + route, json={"model": "tiny", "priority": 1, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
    assert "spec.server.schedulingPolicy" in refused.json()["error"]["message"]
