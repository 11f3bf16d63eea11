"""What a user may say to `languagepipes bench`. Light to import, for the CLI's parser."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from languagepipes_operator.cli.bench.lengths import FORMS, Fixed, Lengths, parse_lengths

Route = Literal["chat", "completions"]
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
DEFAULT_DURATION_SECONDS = 30.0
DEFAULT_PROMPT, DEFAULT_OUTPUT = Fixed(256), Fixed(128)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Level:
    """One setting of the load. Closed loop: so many streams, each of which asks again when it has its answer.
    Open loop: so many requests a second, whatever comes back.
    """

    kind: Literal["streams", "rate"]
    value: float

    @property
    def streams(self) -> int:
        return int(self.value)

    def __str__(self) -> str:
        if self.kind == "streams":
            return f"{self.streams} stream{'s' if self.streams != 1 else ''}"
        return f"{self.value:g} req/s"


@dataclass(frozen=True)
class BenchOptions:
    """A level ends after `requests`, or else after `duration_seconds`. warmup: requests before each level that
    are not counted; None: one a stream, or one in open loop. api_key: default, the environment's
    OPENAI_API_KEY. seed: None draws one. goodput: the greatest seconds of each metric.
    """

    url: str
    levels: tuple[Level, ...] = (Level("streams", 1),)
    requests: int | None = None
    duration_seconds: float = DEFAULT_DURATION_SECONDS
    warmup: int | None = None
    prompt_tokens: Lengths = DEFAULT_PROMPT
    output_tokens: Lengths = DEFAULT_OUTPUT
    shared_prefix_tokens: int = 0
    ignore_eos: bool = True
    route: Route = "chat"
    model: str | None = None
    api_key: str | None = None
    temperature: float | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    timeout_seconds: float = 600.0
    goodput: dict[str, float] = field(default_factory=dict)
    json_file: Path | None = None
    plot_file: Path | None = None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> BenchOptions:
        """From what `add_arguments` parsed."""
        if arguments.rate:
            levels = tuple(Level("rate", rate) for rate in arguments.rate)
        else:
            levels = tuple(Level("streams", streams) for streams in arguments.streams or (1,))
        return cls(
            url=arguments.url,
            levels=levels,
            requests=arguments.requests,
            duration_seconds=arguments.duration or DEFAULT_DURATION_SECONDS,
            warmup=arguments.warmup,
            prompt_tokens=arguments.prompt_tokens,
            output_tokens=arguments.output_tokens,
            shared_prefix_tokens=arguments.shared_prefix,
            ignore_eos=arguments.ignore_eos,
            route=arguments.route,
            model=arguments.model,
            api_key=arguments.api_key,
            temperature=arguments.temperature,
            extra_body=arguments.extra_body,
            seed=arguments.seed,
            timeout_seconds=arguments.timeout,
            goodput=arguments.goodput,
            json_file=arguments.json,
            plot_file=arguments.plot,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `URL` and every option of `bench` to `parser`."""
    parser.add_argument("url", metavar="URL", help="the server, with or without /v1")
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--streams",
        type=_list_of(_count),
        metavar="N,…",
        help="closed loop: so many requests at a time; several numbers are measured one after another (default: 1)",
    )
    load.add_argument(
        "--rate",
        type=_list_of(_positive),
        metavar="R,…",
        help="open loop: so many requests a second, at random times (Poisson)",
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--requests", type=_count, metavar="N", help="requests at each level")
    end.add_argument(
        "--duration", type=_seconds, metavar="TIME", help="of each level, such as 30s or 2m (default: 30s)"
    )
    parser.add_argument(
        "--warmup",
        type=_count_or_0,
        metavar="N",
        help="requests before each level that are not counted (default: one a stream)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=_lengths,
        default=DEFAULT_PROMPT,
        metavar="LENGTH",
        help=f"{FORMS} (default: {DEFAULT_PROMPT})",
    )
    parser.add_argument(
        "--output-tokens",
        type=_lengths,
        default=DEFAULT_OUTPUT,
        metavar="LENGTH",
        help=f"{FORMS} (default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument(
        "--shared-prefix",
        type=_count_or_0,
        default=0,
        metavar="N",
        help="so many more tokens before each prompt, the same in all (default: 0, nothing that a prefix cache has)",
    )
    parser.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for answers that go on past the model's own end, where the server can (default)",
    )
    parser.add_argument("--route", choices=("chat", "completions"), default="chat", help="default: chat")
    parser.add_argument("--model", help="default: the one that the server lists")
    parser.add_argument("--api-key", help="default: the environment's OPENAI_API_KEY")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the server's")
    parser.add_argument(
        "--extra-body", type=_object, default={}, metavar="JSON", help="an object; its fields are sent in each request"
    )
    parser.add_argument("--seed", type=int, help="of prompts, lengths and times (default: drawn, and reported)")
    parser.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="TIME", help="of one request (default: 600s)"
    )
    parser.add_argument(
        "--goodput",
        type=_goodput,
        default={},
        metavar="METRIC:TIME,…",
        help="report how many requests meet all of these, such as ttft:500ms,tpot:50ms; also e2el",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and one record a request")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the figures (needs matplotlib)")


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the message of this error, and of no other."""

    def parse_argument(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def _list_of(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: [parse(part.strip()) for part in text.split(",")]


@_checked
def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is no whole number of 1 or more")
    return int(text)


@_checked
def _count_or_0(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no whole number of 0 or more")
    return int(text)


@_checked
def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is no number above 0")
    return number


_lengths = _checked(parse_lengths)


def parse_seconds(text: str, *, default_unit: str = "s") -> float:
    """`500ms`, `2s`, `1.5m`, `1h`, or a number of `default_unit`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)?", text)
    seconds = float(match[1]) * _UNITS[match[2] or default_unit] if match else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time above 0: use a number and ms, s, m or h, such as 500ms")
    return seconds


_seconds = _checked(parse_seconds)


@_checked
def _goodput(text: str) -> dict[str, float]:
    """As in vLLM and genai-perf, a number alone is milliseconds."""
    bounds: dict[str, float] = {}
    for part in text.split(","):
        metric, _, bound = part.strip().partition(":")
        if metric not in GOODPUT_METRICS:
            raise ValueError(f"{metric!r} is none of {', '.join(GOODPUT_METRICS)}: use METRIC:TIME, such as ttft:500ms")
        bounds[metric] = parse_seconds(bound, default_unit="ms")
    return bounds


@_checked
def _object(text: str) -> dict[str, Any]:
    body = json.loads(text)
    if not isinstance(body, dict):
        raise ValueError(f'{text!r} is no JSON object: use for instance {{"top_p": 0.9}}')
    return body
