"""A tokenizer with more tokens than the embedding has rows, or fewer: who asks for such a token alone hears of it."""

from __future__ import annotations

import httpx
import pytest
from languagepipes_node.end_model.text import TextCodec
from support.scripted_engine import forever
from support.tiny_tokenizer import model_files, train_tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LAST = 400  # <think>, of the tokenizer's 401 tokens
UNKNOWN = (
    f"has id {LAST}, which the model does not know: its embedding has ids 0 to {LAST - 1}, its tokenizer has more."
)


def messages(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (TEXT, {"prompt": "hi <think> there"}, "prompt", UNKNOWN),
        (TEXT, {"prompt": ["hi", "<think>"]}, "prompt", f"Token 1 of the prompt {UNKNOWN}"),
        (CHAT, {"messages": messages("hi <think> there")}, "messages", UNKNOWN),
        (TEXT, {"prompt": [5, LAST]}, "prompt", f"'prompt' holds token id {LAST}, expected 0 to {LAST - 1}."),
        (TEXT, {"prompt": [[5], [2**63]]}, "prompt", f"'prompt' holds token id {2**63}, expected 0 to {LAST - 1}."),
        (TEXT, {"prompt": [-1]}, "prompt", f"'prompt' holds token id -1, expected 0 to {LAST - 1}."),
        (CHAT, {"messages": messages("hi"), "logit_bias": {str(LAST): 1}}, "logit_bias", f"expected 0 to {LAST - 1}."),
    ],
)
def test_a_token_beyond_the_embedding_is_a_400_that_names_it(serve, codec, path, body, param, message):
    served = serve(forever(codec), embedding_rows=LAST, pace_seconds=0.01, max_context_length=100_000)
    with served.client.completions.create(model="tiny", prompt="hello", max_tokens=90_000, stream=True) as other:
        next(other)
        response = httpx.post(served.url + path, json={"model": "tiny", **body})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert message in error["message"]
        assert "<think>" not in error["message"]
        next(other)
    assert len(served.engine.submissions) == 1


def test_the_last_token_of_the_embedding_is_served(serve):
    served = serve("hello", embedding_rows=LAST + 1)
    answer = served.client.completions.create(model="tiny", prompt="<think>", logit_bias={str(LAST): -1})
    assert answer.usage.prompt_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_sampled_tokens_that_the_tokenizer_lacks_show_nothing(serve, codec, stream):
    """A head may be padded to more rows than the tokenizer has tokens."""

    def script(submission):
        yield from (LAST + 1, *codec.encode("Hello"), LAST + 90, *codec.encode(" world"), LAST + 1, 2)

    served = serve(script, embedding_rows=512)
    for body, path in (({"prompt": "hi", "logprobs": 2}, TEXT), ({"messages": messages("hi"), "logprobs": True}, CHAT)):
        wanted = {"model": "tiny", "max_tokens": 50, "stream": stream, **body}
        response = httpx.post(served.url + path, json=wanted)
        assert response.status_code == 200
        assert "error" not in response.text
        if not stream:
            choice = response.json()["choices"][0]
            assert (choice.get("text") or choice["message"]["content"]) == "Hello world"


def test_an_end_token_that_the_head_lacks_ends_nothing(serve):
    files = model_files(train_tokenizer()) | {"generation_config.json": b'{"eos_token_id": [2, 100000]}'}
    served = serve("Hello", codec=TextCodec.load(files.__getitem__))
    assert served.client.completions.create(model="tiny", prompt="hi").choices[0].text == "Hello"
