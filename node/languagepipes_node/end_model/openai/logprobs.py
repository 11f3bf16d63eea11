"""Log probabilities as JSON, written as bytes a token at a time.

An answer of 4,000 tokens with 20 alternatives each names 84,000 tokens: as objects of pydantic's they take seconds to
make and to serialise. So what is constant of a token is made once, and each token is written when it arrives.

A whole answer's tokens are kept until it is sent. What orjson returns occupies some 4 KB however short it is, so what
is kept is a copy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import orjson

from languagepipes_node.end_model.openai.answers import ScoredToken
from languagepipes_node.end_model.requests import TokenLogprobs
from languagepipes_node.end_model.text import TextCodec

_REMEMBERED_TOKENS = 16384
_TOKENS_A_PART = 64  # of a whole answer: some 70 KB with 20 alternatives

TextToken = tuple[bytes, bytes, bytes, bytes]
# JSON knows no infinity; -9999 is what OpenAI's API shows for "not possible".
_LEAST = -9999.0


class LogprobWriter:
    """One model's tokens in both routes' shapes (`response_models.ChatLogprobs`, `response_models.TextLogprobs`)."""

    def __init__(self, codec: TextCodec) -> None:
        @functools.lru_cache(maxsize=_REMEMBERED_TOKENS)
        def text(token: int) -> str:
            return codec.token_bytes(token).decode(errors="replace")

        @functools.lru_cache(maxsize=_REMEMBERED_TOKENS)
        def name(token: int) -> str:
            return codec.token_name(token)

        @functools.lru_cache(maxsize=_REMEMBERED_TOKENS)
        def chat_fields(token: int) -> tuple[bytes, bytes]:
            before = b'{"token":' + orjson.dumps(text(token)) + b',"logprob":'
            return before, b',"bytes":' + orjson.dumps(list(codec.token_bytes(token)))

        @functools.lru_cache(maxsize=_REMEMBERED_TOKENS)
        def written_name(token: int) -> bytes:
            return _copy(orjson.dumps(name(token)))

        @functools.lru_cache(maxsize=_REMEMBERED_TOKENS)
        def prompt_fields(token: int) -> tuple[bytes, bytes]:
            return b'"%d":{"logprob":' % token, b',"decoded_token":' + orjson.dumps(text(token)) + b"}"

        self._prompt_fields = prompt_fields
        self._name = name
        self._written_name = written_name
        self._chat_fields = chat_fields

    def chat_token(self, scored: ScoredToken) -> bytes:
        """A `ScoredChatToken`."""
        before, after = self._chat_fields(scored.token)
        top = []
        logprobs = scored.logprobs
        assert logprobs is not None  # noqa: S101 (chats show no prompt)
        for other, logprob in logprobs.top:
            start, end = self._chat_fields(other)
            top.append(start + _number(logprob) + end + b"}")
        return before + _number(logprobs.logprob) + after + b',"top_logprobs":[' + b",".join(top) + b"]}"

    def prompt_token(self, token: int, logprobs: TokenLogprobs, *, alternatives: int) -> bytes:
        """One entry of `prompt_logprobs`, vLLM's: the token, and so many of the likeliest ones, by their ids."""
        ranked = {token: (logprobs.logprob, logprobs.rank or 0)}
        for rank, (other, logprob) in enumerate(logprobs.top[:alternatives], start=1):
            ranked[other] = (logprob, rank)
        entries = []
        for number, (logprob, rank) in ranked.items():
            before, after = self._prompt_fields(number)
            entries.append(before + _number(logprob) + b',"rank":%d' % rank + after)
        return b"{" + b",".join(entries) + b"}"

    def text_token(self, scored: ScoredToken) -> TextToken:
        """What it adds to each list of a `TextLogprobs`."""
        name, logprobs = self._written_name(scored.token), scored.logprobs
        offset = str(scored.offset).encode()
        if logprobs is None:
            return name, b"null", b"null", offset
        top: dict[str, float] = {}
        for other, logprob in logprobs.top:
            key = self._name(other)
            top[f"token_id:{other}" if key in top else key] = max(logprob, _LEAST)
        # As in OpenAI's API: the sampled one is always there.
        top.setdefault(self._name(scored.token), max(logprobs.logprob, _LEAST))
        return name, _copy(_number(logprobs.logprob)), _copy(orjson.dumps(top)), offset


def chat_logprobs(tokens: Sequence[bytes]) -> Iterator[bytes]:
    """A `ChatLogprobs` of what `chat_token` wrote, part by part."""
    yield b'{"content":['
    yield from listed(tokens)
    yield b'],"refusal":null}'


def text_logprobs(tokens: Sequence[TextToken]) -> Iterator[bytes]:
    """A `TextLogprobs` of what `text_token` wrote, part by part."""
    names = (b'{"tokens":[', b'],"token_logprobs":[', b'],"top_logprobs":[', b'],"text_offset":[')
    for place, name in enumerate(names):
        yield name
        for first in range(0, len(tokens), _TOKENS_A_PART):
            own = [token[place] for token in tokens[first : first + _TOKENS_A_PART]]
            yield (b"," if first else b"") + b",".join(own)
    yield b"]}"


def listed(items: Sequence[bytes]) -> Iterator[bytes]:
    """The items with commas between them."""
    for first in range(0, len(items), _TOKENS_A_PART):
        yield (b"," if first else b"") + b",".join(items[first : first + _TOKENS_A_PART])


def _number(logprob: float) -> bytes:
    return orjson.dumps(max(logprob, _LEAST))


def _copy(written: bytes) -> bytes:
    """The same in no more memory than it needs."""
    return bytes(memoryview(written))
