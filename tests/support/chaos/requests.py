"""What is asked of the replica, and its answers as a client of the API sees them: line by line, trusted in nothing."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from support.chaos.members import PIPE
from support.chaos.model import CHARACTERS, END_TOKEN, Dtype

# Named with each token in bfloat16: as many as the completions route gives.
_ALTERNATIVES = 5
_KINDS = ("greedy", "greedy with penalties", "sampled", "nucleus", "two samples")


class AnswerFailed(Exception):
    """The answer was refused, broke off, reported an error or was malformed; the message says how."""


@dataclass(frozen=True)
class Request:
    """One streamed request. path: under /v1."""

    name: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class ScoredToken:
    """top: the likeliest tokens with their log-probabilities, if asked for; `token` may be missing there."""

    token: str
    logprob: float
    top: dict[str, float]


@dataclass
class Choice:
    text: str = ""
    finish: str | None = None
    scored: list[ScoredToken] = field(default_factory=list)


@dataclass
class Answer:
    """choices in order. longest_pause_seconds: between two pieces of text. pings: SSE comments."""

    choices: list[Choice]
    usage: dict[str, Any]
    longest_pause_seconds: float
    pings: int


def make_requests(seed: int, count: int, dtype: Dtype = "float32") -> list[Request]:
    """Chats and completions, greedy and with seeds, prompts of 1 to 300 tokens, answers of up to 200.

    In bfloat16 all are greedy and report the likeliest tokens, so that a token which differs can be judged by its
    margin; and none ends before its limit, so that a token too few or too many shows in an answer that differs.
    """
    draw = random.Random(seed)
    return [_request(draw, number, dtype) for number in range(count)]


def _request(draw: random.Random, number: int, dtype: Dtype) -> Request:
    # Short prompts and long answers: sequences outgrow the blocks that there were when they started.
    short, edge, long = draw.randint(1, 40), draw.choice([15, 16, 17, 95, 96, 97]), draw.randint(100, 300)
    length = draw.choice([short, short, edge, long])
    prompt = "".join(draw.choice(CHARACTERS[1:]) for _ in range(length))
    body: dict[str, Any] = {
        "model": PIPE,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": draw.choice([draw.randint(1, 8), *[draw.randint(60, 200)] * 3]),
        "temperature": 0,
    }
    kind = draw.choice(_KINDS if dtype == "float32" else _KINDS[:1])
    if kind == "greedy with penalties":
        body |= {"presence_penalty": 0.5, "frequency_penalty": 0.3}
    elif kind != "greedy":
        body |= {"temperature": draw.choice([0.7, 1.0]), "seed": draw.randrange(2**40)}
        if kind == "nucleus":
            body |= {"top_p": 0.9, "top_k": 40}
        elif kind == "two samples":
            body["n"] = 2
    chat = draw.random() < 0.5
    scored = draw.random() < 0.5
    alternatives = 0
    if dtype == "bfloat16":
        scored, alternatives = True, _ALTERNATIVES
        body["logit_bias"] = {str(END_TOKEN): -100}
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}]
        if scored:
            body |= {"logprobs": True, "top_logprobs": alternatives}
        return Request(f"{number}: chat, {kind}", "chat/completions", body)
    body["prompt"] = prompt
    if scored:
        body["logprobs"] = alternatives
    return Request(f"{number}: completion, {kind}", "completions", body)


def ask(client: httpx.Client, url: str, request: Request, *, on_text: Callable[[], None] = lambda: None) -> Answer:
    """The whole answer. on_text: called at each piece of text. Raises AnswerFailed."""
    reader = _Reader(request)
    last, longest = math.inf, 0.0
    try:
        with client.stream("POST", f"{url}/{request.path}", json=request.body) as response:
            if response.status_code != 200:
                raise AnswerFailed(f"{response.status_code}: {response.read().decode(errors='replace')[:500]}")
            for line in response.iter_lines():
                if reader.take(line):
                    now = time.monotonic()
                    last, longest = now, max(longest, now - last)
                    on_text()
    except httpx.HTTPError as error:
        raise AnswerFailed(f"{type(error).__name__}: {error} after {reader.so_far()}") from error
    return reader.answer(longest)


class _Reader:
    """The lines of one stream of server-sent events."""

    def __init__(self, request: Request) -> None:
        self._chat = request.path.startswith("chat")
        self._choices = [Choice() for _ in range(request.body.get("n", 1))]
        self._ids: set[str] = set()
        self._usage: dict[str, Any] | None = None
        self._done = False
        self._pings = 0

    def take(self, line: str) -> bool:
        """Whether the line carried text. Raises AnswerFailed."""
        if not line:
            return False
        if line.startswith(":"):
            self._pings += 1
            return False
        if self._done or not line.startswith("data: "):
            raise AnswerFailed(f"unexpected line {line[:200]!r} after {self.so_far()}")
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            self._done = True
            return False
        event = json.loads(data)
        if "error" in event:
            raise AnswerFailed(f"error event after {self.so_far()}: {json.dumps(event['error'])}")
        self._ids.add(event["id"])
        if event.get("usage"):
            self._usage = event["usage"]
        texts = [self._take_choice(choice) for choice in event["choices"]]
        return any(texts)

    def _take_choice(self, piece: dict[str, Any]) -> bool:
        choice = self._choices[piece["index"]]
        text = (piece["delta"].get("content") if self._chat else piece["text"]) or ""
        if choice.finish is not None:
            raise AnswerFailed(f"choice {piece['index']} goes on after its end: {text!r}")
        choice.text += text
        choice.finish = piece["finish_reason"]
        if piece.get("logprobs"):
            choice.scored += self._scores(piece["logprobs"])
        return bool(text)

    def _scores(self, logprobs: dict[str, Any]) -> list[ScoredToken]:
        if self._chat:
            return [
                ScoredToken(
                    token["token"],
                    token["logprob"],
                    {other["token"]: other["logprob"] for other in token["top_logprobs"]},
                )
                for token in logprobs["content"]
            ]
        columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
        return [ScoredToken(*token) for token in zip(*columns, strict=True)]

    def so_far(self) -> str:
        return f"{[len(choice.text) for choice in self._choices]} characters"

    def answer(self, longest_pause_seconds: float) -> Answer:
        """Raises AnswerFailed unless the stream ended as it should."""
        unfinished = [number for number, choice in enumerate(self._choices) if choice.finish is None]
        if not self._done or unfinished or self._usage is None or len(self._ids) != 1:
            raise AnswerFailed(
                f"the stream ended after {self.so_far()}: [DONE]={self._done} without finish_reason={unfinished} "
                f"usage={self._usage} ids={len(self._ids)}"
            )
        return Answer(self._choices, self._usage, longest_pause_seconds, self._pings)
