"""Nothing of an answer holds the event loop in proportion to its length, and its JSON is what the models describe.

Counted, not timed: how many tokens are written between two turns of the loop, and how many bytes are sent in one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import httpx
import orjson
import pytest
from languagepipes_node.end_model.openai.answers import ScoredToken
from languagepipes_node.end_model.openai.app import create_app
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.bridge import EngineBridge
from languagepipes_node.end_model.openai.logprobs import LogprobWriter, TextToken
from languagepipes_node.end_model.openai.response_models import ChatCompletion, Completion
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.requests import (
    EngineCommand,
    EngineOutput,
    EngineStatus,
    Submission,
    TokenLogprobs,
    TokenOutput,
)
from languagepipes_node.end_model.text import TextCodec
from starlette.types import Message, Receive, Scope, Send
from support.tiny_tokenizer import model_files, train_tokenizer

TOKENS = 800
CODEC = TextCodec.load(model_files(train_tokenizer()).__getitem__)
TEXT = CODEC.encode("The quick brown fox jumps over the lazy dog. ")
NOTHING = (100_000,)  # past the tokenizer's vocabulary: shown as no text, so that all log probabilities come at the end
MOST_SCORED_A_TURN = 100
MOST_BYTES_A_SEND = 256 << 10


class EngineAtOnce:
    """Answers each submission with all of its tokens in one list."""

    def __init__(self, bridge: EngineBridge, tokens: Sequence[int]) -> None:
        self.status = EngineStatus(ring_ready=True, ring_error="", accepting=True, epoch=1)
        self._bridge, self._tokens = bridge, tokens

    def submit(self, command: EngineCommand) -> None:
        if not isinstance(command, Submission):
            return
        outputs: list[EngineOutput] = []
        for place, token in enumerate(itertools.islice(itertools.cycle(self._tokens), TOKENS)):
            logprobs = None
            if command.logprobs is not None:
                top = tuple((100 + place % 90 + other, -0.1 * other) for other in range(command.logprobs))
                logprobs = TokenLogprobs(float("-inf") if place == 7 else -0.25, top)
            finish = "length" if place == TOKENS - 1 else None
            outputs.append(TokenOutput(command.request_id, token, finish, logprobs))
        self._bridge.deliver(outputs)


class CountingWriter(LogprobWriter):
    """Counts the tokens that are written."""

    written = 0

    def chat_token(self, scored: ScoredToken) -> bytes:
        self.written += 1
        return super().chat_token(scored)

    def text_token(self, scored: ScoredToken) -> TextToken:
        self.written += 1
        return super().text_token(scored)


class Asked:
    """A request to an application in this process, and what the loop's turns saw of it."""

    def __init__(self, path: str, body: dict[str, Any], tokens: Sequence[int]) -> None:
        bridge = EngineBridge()
        self.app = create_app(
            engine=EngineAtOnce(bridge, tokens),
            bridge=bridge,
            text=CODEC,
            embedding_rows=CODEC.vocabulary_size,
            served_name="tiny",
            max_context_length=100_000,
            api_keys=ApiKeys(None),
        )
        service: Service = self.app.state.service
        self.writer = CountingWriter(CODEC)
        service.__dict__["logprobs"] = self.writer
        self.written_by_turn: list[int] = []
        self.sends: list[tuple[int, int]] = []  # (turn, bytes)
        self.response = asyncio.run(self._ask(path, {"model": "tiny", "max_tokens": TOKENS, **body}))

    async def _ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async def recording(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                if message["type"] == "http.response.body":
                    self.sends.append((len(self.written_by_turn), len(message["body"])))
                await send(message)

            await self.app(scope, receive, sending)

        async def count_turns() -> None:
            while True:
                self.written_by_turn.append(self.writer.written)
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(recording), base_url="http://tiny") as client:
            response = await client.post(path, json=body)
        counting.cancel()
        self.written_by_turn.append(self.writer.written)
        return response

    @property
    def most_scored_in_a_turn(self) -> int:
        return max(after - before for before, after in itertools.pairwise(self.written_by_turn))


CHAT = "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "logprobs": True, "top_logprobs": 20}
COMPLETION = "/v1/completions", {"prompt": "hi", "logprobs": 5}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("tokens", [TEXT, NOTHING], ids=["text", "no text until the end"])
@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION], ids=["chat", "completion"])
def test_a_long_answer_gives_the_loop_to_others_all_along(
    path: str, body: dict[str, Any], tokens: Sequence[int], stream: bool
) -> None:
    asked = Asked(path, {**body, "stream": stream}, tokens)
    assert asked.response.status_code == 200
    assert asked.writer.written == TOKENS
    assert asked.most_scored_in_a_turn <= MOST_SCORED_A_TURN


@pytest.mark.parametrize("answers", [1, 3])
@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION], ids=["chat", "completion"])
def test_a_long_whole_answer_is_sent_in_parts_with_turns_between(path: str, body: dict[str, Any], answers: int) -> None:
    asked = Asked(path, {**body, "n": answers}, TEXT)
    assert sum(size for _, size in asked.sends) == len(asked.response.content)
    assert int(asked.response.headers["content-length"]) == len(asked.response.content)
    assert max(size for _, size in asked.sends) <= MOST_BYTES_A_SEND
    full = [turn for turn, size in asked.sends if size]
    assert len(set(full)) == len(full)


def test_a_whole_chat_says_what_its_model_says() -> None:
    asked = Asked(CHAT[0], {**CHAT[1], "n": 2}, TEXT)
    model = ChatCompletion.model_validate_json(asked.response.content)
    # Thinking, calls and token ids are left out where there are none.
    assert orjson.loads(model.model_dump_json(exclude_unset=True)) == asked.response.json()
    on_request = ["prompt_token_ids", "prompt_logprobs"]
    assert [*asked.response.json(), *on_request] == list(ChatCompletion.model_fields)
    assert [choice.index for choice in model.choices] == [0, 1]
    for choice in model.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.content) == TOKENS
        assert choice.message.content == CODEC.decode([*itertools.islice(itertools.cycle(TEXT), TOKENS)])
        assert choice.logprobs.content[7].logprob == -9999.0
        first = choice.logprobs.content[0]
        assert (bytes(first.bytes), first.token) == (CODEC.token_bytes(TEXT[0]), CODEC.decode(TEXT[:1]))
        assert [other.logprob for other in first.top_logprobs] == [-0.1 * place for place in range(20)]


def test_a_whole_completion_says_what_its_model_says() -> None:
    asked = Asked(COMPLETION[0], COMPLETION[1], TEXT)
    model = Completion.model_validate_json(asked.response.content)
    assert orjson.loads(model.model_dump_json(exclude_unset=True)) == asked.response.json()
    assert list(asked.response.json()) == list(Completion.model_fields)
    logprobs = model.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens) == model.choices[0].text
    offsets = [0, *itertools.accumulate(map(len, logprobs.tokens))][:-1]
    assert logprobs.text_offset == offsets
    assert (logprobs.token_logprobs[7], len(logprobs.top_logprobs)) == (-9999.0, TOKENS)
