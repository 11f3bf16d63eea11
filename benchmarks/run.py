"""`make bench`: every figure in one run on one machine.

For each model: transformers' `generate` and the ring in turn (A B A B …), never both at once; then what the ring's
hops cost, what bounds there are, how long a start takes; then language-pipes on the same prompts. The report goes to
standard output as Markdown, and with `--output` to a directory as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks import bounds, hop, language_pipes_peer, machine, models
from benchmarks.figures import Better, Comparison, Spread, Target, markdown_table, significant
from benchmarks.language_pipes_peer import Peer
from benchmarks.models import BenchmarkModel
from benchmarks.peer_programs import PeerMissing
from benchmarks.processes import ServerFailed
from benchmarks.prompts import Messages, chat_prompt, decode_lengths
from benchmarks.ring import HopCost, Ring, Start, hop_cost
from benchmarks.streams import Round, StreamFailed, run_streams
from benchmarks.transformers_generate import DTYPES, Generate, Generation

_RATE = Target("higher", 1.0)
_WAIT = Target("lower", 1.3)
_HOP_TARGET_MICROSECONDS = 150.0
_RING_EXTRA = {"ignore_eos": True, "stream_options": {"include_usage": True}}
# About the middle of a stream: 32 tokens of prompt and half of the answer.
_CONTEXT_TOKENS = 48
# A dtype this much worse in the first try is not measured again.
_HOPELESS = 1.25


@dataclass(frozen=True)
class Figure:
    """One figure of both contenders. kind: tokens a second of `streams` streams, or the wait for a first token."""

    kind: Literal["rate", "wait"]
    streams: int
    prompt_tokens: int
    new_tokens: int

    @property
    def name(self) -> str:
        if self.kind == "wait":
            return f"first token, {self.prompt_tokens}-token prompt"
        return "1 stream" if self.streams == 1 else f"{self.streams} streams"

    @property
    def unit(self) -> str:
        return "s" if self.kind == "wait" else "tokens/s"

    @property
    def better(self) -> Better:
        return "lower" if self.kind == "wait" else "higher"

    @property
    def target(self) -> Target:
        return _WAIT if self.kind == "wait" else _RATE

    def prompts(self, repeat: int, count: Callable[[Messages], int]) -> list[Messages]:
        """Fresh ones for every repeat: nobody may answer from a cache."""
        lengths = [self.prompt_tokens] if self.kind == "wait" else decode_lengths(self.streams)
        seed = 1000 * (repeat + 1) + 100 * (self.kind == "wait") + self.streams + 7 * self.prompt_tokens
        return [chat_prompt(length, seed=100 * seed + place, count=count) for place, length in enumerate(lengths)]


@dataclass(frozen=True)
class Effort:
    """How much to measure. new_tokens: by streams, for each model. peer_new_tokens: likewise, for language-pipes."""

    repeats: int
    starts: int
    new_tokens: dict[str, dict[int, int]]
    peer_repeats: int
    peer_new_tokens: dict[int, int]
    peer_seconds: float
    more_stages: bool

    def figures(self, model: BenchmarkModel) -> list[Figure]:
        rates = [Figure("rate", streams, 32, tokens) for streams, tokens in self.new_tokens[model.name].items()]
        return [*rates, Figure("wait", 1, 32, 1), Figure("wait", 1, 512, 1)]


FULL = Effort(
    repeats=5,
    starts=5,
    new_tokens={"smollm2": {1: 64, 4: 48, 16: 32}, "qwen3-0.6b": {1: 32, 4: 24, 16: 16}},
    peer_repeats=5,
    peer_new_tokens={1: 16, 4: 8, 16: 6},
    peer_seconds=240.0,
    more_stages=True,
)
QUICK = replace(
    FULL,
    repeats=3,
    starts=2,
    new_tokens={"smollm2": {1: 32, 4: 24, 16: 16}, "qwen3-0.6b": {1: 16, 4: 8, 16: 8}},
    peer_repeats=2,
    peer_new_tokens={1: 16, 4: 6, 16: 3},
    peer_seconds=60.0,
    more_stages=False,
)


@dataclass
class RingResult:
    """One ring beside `generate`. decode: rates after every stream's first token, (ring, generate) by figure."""

    members: int
    plan: str
    comparisons: list[Comparison]
    dtypes: list[str]
    decode: dict[str, tuple[Spread, Spread]]
    hop: HopCost | None
    resident_bytes: dict[str, int]
    answers: dict[str, str]


@dataclass
class PeerResult:
    """What language-pipes did: figures by name, or why there are none."""

    figures: dict[str, Spread] = field(default_factory=dict)
    start_seconds: float | None = None
    problems: list[str] = field(default_factory=list)


@dataclass
class ModelResult:
    """Everything about one model."""

    model: BenchmarkModel
    rings: list[RingResult]
    starts: list[Start]
    cost: bounds.ModelCost
    peer: PeerResult | None


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    effort = QUICK if options.quick else FULL
    names = options.model or (["smollm2"] if options.quick else list(models.MODELS_BY_NAME))
    began = time.monotonic()
    described = machine.describe()
    print(machine.markdown(described), file=sys.stderr)
    chosen = [models.ensure(name) for name in names]

    say("memory bandwidth and arithmetic")
    limits = bounds.measure(machine.cores())
    say("a hop without compute")
    hops = hop.measure(repeats=effort.repeats, rounds=300)
    results = [measure_model(model, effort, stages=options.stages, peer=options.peer) for model in chosen]
    minutes = (time.monotonic() - began) / 60

    report = markdown_report(described, limits, hops, results, minutes=minutes)
    print(report)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "benchmarks.md").write_text(report + "\n")
        data = json_report(described, limits, hops, results, minutes=minutes)
        (options.output / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
    if options.docs is not None:
        text = options.docs.read_text().partition("\n## Results\n")[0].rstrip()
        options.docs.write_text(f"{text}\n\n## Results\n\n{report}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Take every figure in one run.")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, SmolLM2 alone: under four minutes")
    parser.add_argument("--model", action="append", choices=list(models.MODELS_BY_NAME), help="only this one")
    parser.add_argument("--stages", type=int, default=2, help="besides the End Model (default: 2)")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="leave language-pipes out")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write benchmarks.md and benchmarks.json there")
    parser.add_argument("--docs", metavar="FILE", type=Path, help="replace the section Results of this page")
    return parser


def measure_model(model: BenchmarkModel, effort: Effort, *, stages: int, peer: bool) -> ModelResult:
    """All that is measured with one model."""
    figures = effort.figures(model)
    rings, starts = [], []
    with Generate(model.directory, threads=machine.cores()) as generate:
        say(f"{model.title}: which dtype is faster for generate")
        dtypes = {figure: promising_dtypes(figure, generate) for figure in figures}
        with Ring(model, stages=stages) as ring:
            cost = bounds.model_cost(bounds.plan_of(ring.pipe_file), model)
            starts.append(first_token(ring, figures[0].prompts(99, generate.count)[0]))
            rings.append(measure_ring(model, ring, generate, figures, dtypes, effort.repeats))
        if effort.more_stages and model.name == "smollm2":
            with Ring(model, stages=stages + 1) as ring:
                some = [figure for figure in figures if figure.kind == "rate" and figure.streams != 4]
                rings.append(measure_ring(model, ring, generate, some, dtypes, effort.repeats))
        prompts = {
            (figure, repeat): figure.prompts(repeat, generate.count)
            for figure in figures
            for repeat in range(-1, max(effort.peer_repeats, effort.starts))
        }
    for repeat in range(1, effort.starts):
        say(f"{model.title}: start {repeat + 1}")
        with Ring(model, stages=stages) as ring:
            starts.append(first_token(ring, prompts[figures[0], repeat][0]))
    measured = measure_peer(model, figures, prompts, effort) if peer else None
    return ModelResult(model, rings, starts, cost, measured)


def promising_dtypes(figure: Figure, generate: Generate) -> list[str]:
    """The dtypes that may be the faster one for this figure, by one short try each."""
    tries: dict[str, float] = {}
    short = replace(figure, new_tokens=min(figure.new_tokens, 8))
    for dtype in DTYPES:
        prompts = short.prompts(-1, generate.count)
        if figure.prompt_tokens < 512:
            generate.generate(dtype, prompts, new_tokens=1)  # the first call of a shape is slower
        tries[dtype] = _value(figure, generate.generate(dtype, prompts, new_tokens=short.new_tokens))
    best = max(tries.values()) if figure.better == "higher" else min(tries.values())
    return [dtype for dtype, value in tries.items() if max(value / best, best / value) <= _HOPELESS]


def measure_ring(
    model: BenchmarkModel,
    ring: Ring,
    generate: Generate,
    figures: Sequence[Figure],
    dtypes: dict[Figure, list[str]],
    repeats: int,
) -> RingResult:
    """Both contenders in turn, figure by figure."""
    comparisons, chosen, decode = [], [], {}
    hops: HopCost | None = None
    answers: dict[str, str] = {}
    for figure in figures:
        say(f"{model.title}, {ring.members} members: {figure.name}")
        _stream(ring, figure, figure.prompts(-1, generate.count))  # a warm-up that is not counted
        theirs: dict[str, list[Generation]] = {dtype: [] for dtype in dtypes[figure]}
        ours: list[Round] = []
        metrics = ring.metrics()
        for repeat in range(repeats):
            prompts = figure.prompts(repeat, generate.count)
            for dtype, taken in theirs.items():
                taken.append(generate.generate(dtype, prompts, new_tokens=figure.new_tokens))
            ours.append(_stream(ring, figure, prompts))
        if figure.kind == "rate" and figure.streams == 1:
            hops = hop_cost(metrics, ring.metrics())
            answers = {dtype: taken[0].texts[0] for dtype, taken in theirs.items()}
            answers["ring"] = ours[0].streams[0].text

        spreads = {dtype: Spread.of([_value(figure, each) for each in taken]) for dtype, taken in theirs.items()}
        ranked = sorted(spreads, key=lambda dtype: spreads[dtype].median, reverse=figure.better == "higher")
        best = ranked[0]
        mine = Spread.of([_value(figure, each) for each in ours])
        comparisons.append(Comparison(figure.name, figure.unit, mine, spreads[best], figure.target))
        chosen.append(best)
        if figure.kind == "rate":
            rates = [rate for each in ours if (rate := each.decode_tokens_per_second) is not None]
            if rates:
                baseline = Spread.of([each.decode_tokens_per_second for each in theirs[best]])
                decode[figure.name] = (Spread.of(rates), baseline)
    return RingResult(
        members=ring.members,
        plan=ring.plan(),
        comparisons=comparisons,
        dtypes=chosen,
        decode=decode,
        hop=hops,
        resident_bytes=ring.resident_bytes(),
        answers=answers,
    )


def _stream(ring: Ring, figure: Figure, prompts: Sequence[Messages]) -> Round:
    """Raises StreamFailed if a stream has another length than asked: then the figures would compare unlike work."""
    streams = run_streams(ring.url, prompts, model=ring.model_id, new_tokens=figure.new_tokens, extra=_RING_EXTRA)
    if streams.tokens != figure.new_tokens * len(prompts):
        raise StreamFailed(f"{figure.name}: {streams.tokens} tokens came, not {len(prompts)} × {figure.new_tokens}")
    return streams


def _value(figure: Figure, run: Generation | Round) -> float:
    if figure.kind == "rate":
        return run.tokens_per_second
    return run.seconds if isinstance(run, Generation) else run.first_token_seconds[0]


def first_token(ring: Ring, prompt: Messages) -> Start:
    """The ring's start, with its first request's first token."""
    before = ring.since_start()
    streams = run_streams(ring.url, [prompt], model=ring.model_id, new_tokens=4, extra=_RING_EXTRA)
    return replace(ring.start, first_token=before + streams.first_token_seconds[0])


def measure_peer(
    model: BenchmarkModel,
    figures: Sequence[Figure],
    prompts: dict[tuple[Figure, int], list[Messages]],
    effort: Effort,
) -> PeerResult:
    """language-pipes on the same prompts, within `effort.peer_seconds`. Its failures are results, not ours.

    As the measured best: all cores for each node while there is one stream (its nodes take turns), one thread a node
    with more.
    """
    result = PeerResult()
    cores = machine.cores()
    left = effort.peer_seconds  # starts are not counted
    groups = {cores: [figure for figure in figures if figure.streams == 1]}
    groups.setdefault(max(1, cores // 2), []).extend(figure for figure in figures if figure.streams > 1)
    for threads, group in groups.items():
        say(f"{model.title}: language-pipes, {threads} threads a node")
        try:
            with Peer(model, threads=threads) as peer:
                result.start_seconds = result.start_seconds or peer.start_seconds
                deadline = time.monotonic() + left
                for figure in group:
                    _measure_peer_figure(peer, figure, prompts, effort, deadline, result)
                left = deadline - time.monotonic()
        except (PeerMissing, ServerFailed, StreamFailed) as error:
            result.problems.append(f"{threads} threads a node: {error}")
    return result


def _measure_peer_figure(
    peer: Peer,
    figure: Figure,
    prompts: dict[tuple[Figure, int], list[Messages]],
    effort: Effort,
    deadline: float,
    result: PeerResult,
) -> None:
    new_tokens = 2 if figure.kind == "wait" else effort.peer_new_tokens[figure.streams]
    values: list[float] = []
    for repeat in range(-1, effort.peer_repeats):  # -1: a warm-up
        left = deadline - time.monotonic()
        if left < 1:
            break
        if repeat < 0 and figure.streams > 1:
            continue
        streams = run_streams(
            peer.url,
            prompts[figure, repeat],
            model=peer.model_id,
            new_tokens=new_tokens,
            stagger_seconds=peer.stagger_seconds if figure.streams > 1 else 0.0,
            timeout_seconds=min(left, 120.0),
        )
        if repeat >= 0:
            rate = language_pipes_peer.tokens_of(streams) / streams.seconds
            values.append(rate if figure.kind == "rate" else streams.first_token_seconds[0])
    if values:
        result.figures[figure.name] = Spread.of(values)
    if len(values) < effort.peer_repeats:
        result.problems.append(f"{figure.name}: {len(values)} of {effort.peer_repeats} repeats in the time allowed")


def markdown_report(
    described: dict[str, Any],
    limits: bounds.MachineLimits,
    hops: list[hop.HopFigure],
    results: list[ModelResult],
    *,
    minutes: float,
) -> str:
    """The report as Markdown. Figures are medians, with (least–greatest)."""
    parts = [machine.markdown(described), f"- Took {minutes:.1f} minutes. Figures are medians (least–greatest)."]
    parts = ["\n".join(parts)]
    for result in results:
        parts += _model_sections(result, limits, hops)
    parts += [f"### A hop without compute\n\n{hop.table(hops)}"]
    flops = ", ".join(f"{name} {significant(value / 1e9)} GFLOP/s" for name, value in limits.flops.items())
    parts.append(
        f"Measured on all cores together: memory read {significant(limits.read_bytes_per_second / 1e9)} GB/s; "
        f"matrix products {flops}."
    )
    return "\n\n".join(parts)


def _model_sections(result: ModelResult, limits: bounds.MachineLimits, hops: list[hop.HopFigure]) -> list[str]:
    parts = [f"### {result.model.title}"]
    for ring in result.rings:
        rows = []
        for figure, dtype in zip(ring.comparisons, ring.dtypes, strict=True):
            ratio, verdict = figure.ratio, "yes" if figure.met else "no"
            baseline = f"{figure.theirs} {dtype}"
            row = [f"{figure.name}, {figure.unit}", str(figure.ours), baseline, str(ratio), str(figure.target), verdict]
            rows.append([*row, significant(_bound(figure.name, ring, result, limits, hops))])
        header = ["figure", "ring", "transformers generate", "ratio", "asked", "met", "bound"]
        parts.append(f"Ring of {ring.members} members ({ring.plan}):\n\n{markdown_table(header, rows)}")
        if ring.decode:
            rows = [[name, str(ours), str(theirs)] for name, (ours, theirs) in ring.decode.items()]
            table = markdown_table(["decode alone, tokens/s", "ring", "transformers generate"], rows)
            parts.append(f"After every stream's first token:\n\n{table}")
        if ring.hop is not None:
            parts.append(_hop_sentence(ring.hop))
    rows = [[name, str(spread)] for name, spread in _phases(result.starts).items()]
    parts.append(f"`languagepipes up`, seconds:\n\n{markdown_table(['phase', 'took'], rows)}")
    if result.peer is not None:
        parts.append(_peer_section(result))
    return parts


def _bound(
    name: str,
    ring: RingResult,
    result: ModelResult,
    limits: bounds.MachineLimits,
    hops: list[hop.HopFigure],
) -> float:
    hop_seconds = min(figure.median.median for figure in hops if figure.name == "ring") / 1e6
    if name.startswith("first token"):
        return bounds.first_token_seconds(
            result.cost,
            limits,
            prompt_tokens=512 if "512" in name else 32,
            members=ring.members,
            hop_seconds=hop_seconds,
        )
    return bounds.decode_tokens_per_second(
        result.cost,
        limits,
        streams=int(name.split()[0]),
        context_tokens=_CONTEXT_TOKENS,
        members=ring.members,
        hop_seconds=hop_seconds,
    )


def _hop_sentence(cost: HopCost) -> str:
    def shown(seconds: float | None) -> str:
        return "unknown" if seconds is None else f"{significant(seconds * 1e6)} µs"

    return (
        f"A hop while one stream decodes (from /metrics, interpolated within buckets): median {shown(cost.median)}, "
        f"mean {shown(cost.mean)}, p99 {shown(cost.ninety_ninth)}, over {cost.hops} observations; "
        f"asked: at most {significant(_HOP_TARGET_MICROSECONDS)} µs at the median."
    )


def _phases(starts: list[Start]) -> dict[str, Spread]:
    taken: dict[str, list[float]] = {}
    for start in starts:
        for name, seconds in start.phases().items():
            taken.setdefault(name, []).append(seconds)
    taken["start to first token"] = [start.first_token or start.ready for start in starts]
    return {name: Spread.of(values) for name, values in taken.items()}


def _peer_section(result: ModelResult) -> str:
    assert result.peer is not None
    ours = {figure.name: figure for figure in result.rings[0].comparisons}
    rows = []
    for name, theirs in result.peer.figures.items():
        mine = ours[name].ours
        rows.append([f"{name}, {ours[name].unit}", str(theirs), str(mine), significant(mine.median / theirs.median)])
    title = f"language-pipes {language_pipes_peer.VERSION}, two nodes, same prompts, right after"
    parts = [f"{title}:"]
    if rows:
        header = ["figure", "language-pipes", "ring", "ring / language-pipes"]
        parts.append(markdown_table(header, rows))
    if result.peer.start_seconds is not None:
        parts.append(f"Its two nodes were ready after {significant(result.peer.start_seconds)} s.")
    parts += [f"- {problem}" for problem in result.peer.problems]
    return "\n\n".join(parts)


def json_report(
    described: dict[str, Any],
    limits: bounds.MachineLimits,
    hops: list[hop.HopFigure],
    results: list[ModelResult],
    *,
    minutes: float,
) -> dict[str, Any]:
    """The same with every sample."""
    return {
        "machine": described,
        "minutes": minutes,
        "limits": asdict(limits),
        "hops": [
            {"name": each.name, "tensor_bytes": each.tensor_bytes, "median_microseconds": each.median.to_json()}
            for each in hops
        ],
        "models": [_model_json(result) for result in results],
    }


def _model_json(result: ModelResult) -> dict[str, Any]:
    rings = [
        {
            "members": ring.members,
            "plan": ring.plan,
            "figures": [
                {**figure.to_json(), "baseline_dtype": dtype}
                for figure, dtype in zip(ring.comparisons, ring.dtypes, strict=True)
            ],
            "decode": {
                name: {"ours": ours.to_json(), "theirs": theirs.to_json()}
                for name, (ours, theirs) in ring.decode.items()
            },
            "hop": None if ring.hop is None else asdict(ring.hop),
            "resident_bytes": ring.resident_bytes,
            "first_answers": ring.answers,
        }
        for ring in result.rings
    ]
    peer = result.peer
    return {
        "name": result.model.name,
        "rings": rings,
        "cost": asdict(result.cost),
        "starts": [{**asdict(start), "phases": start.phases()} for start in result.starts],
        "language_pipes": None
        if peer is None
        else {
            "figures": {name: spread.to_json() for name, spread in peer.figures.items()},
            "start_seconds": peer.start_seconds,
            "problems": peer.problems,
        },
    }


def say(what: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
