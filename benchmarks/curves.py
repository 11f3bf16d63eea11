"""`python -m benchmarks.curves`: how a ring behaves as one thing grows, each curve beside its bound.

stages     1 to 6 stages beside the End Model, one stream and 16
streams    1 to 64 streams on two stages
context    one stream whose prompt and answer are 128 to 8,192 tokens: rate of decoding, and first token
hops       0 to 20 ms added to every hop of two stages (`benchmarks.delay_relay`), one stream and 16

Everything is `languagepipes up` with SmolLM2 in bfloat16 and mTLS, all members on this machine. Points of one ring are
taken in turn (A B C A B C …); rings with another number of stages come one after the other. Each point's bound is
computed from what the same run measured of the machine; `benchmarks.curve_report` says how. `--resume` goes on after
the last whole ring of a run that was cut short.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from languagepipes_node.end_model.text import TextCodec

from benchmarks import bounds, curve_report, delay_relay, hop, machine, models
from benchmarks.curve_report import Curve, Point
from benchmarks.docs_section import replace_section
from benchmarks.models import CACHE, BenchmarkModel
from benchmarks.peers import files_of
from benchmarks.prompts import Messages, chat_prompt, decode_lengths
from benchmarks.ring import Ring
from benchmarks.run import say
from benchmarks.streams import Round, StreamFailed, run_streams
from benchmarks.unfinished import OtherRun, Unfinished, identity

CURVES = ("stages", "streams", "context", "hops")
STAGES = (1, 2, 3, 4, 5, 6)
STREAMS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
ADDED_MILLISECONDS = (0, 1, 2, 5, 10, 20)
_FEW, _MANY = 1, 16
_PROMPT_TOKENS = 32
_MOST_TOKENS = 256
_EXTRA = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_UNFINISHED = CACHE / "curves.unfinished.json"
Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Effort:
    """new_tokens: of a single stream. shared_tokens: of each of several."""

    repeats: int
    new_tokens: int
    shared_tokens: int

    def tokens(self, streams: int) -> int:
        return self.new_tokens if streams == 1 else self.shared_tokens


FULL = Effort(repeats=5, new_tokens=64, shared_tokens=48)
QUICK = Effort(repeats=3, new_tokens=24, shared_tokens=24)


@dataclass(frozen=True)
class Machine:
    """What bounds are computed from: limits, what a step of the model costs, a hop without compute."""

    limits: bounds.MachineLimits
    cost: bounds.ModelCost
    hop_seconds: float

    def decode(self, streams: int, *, context: int, members: int) -> float:
        return bounds.decode_tokens_per_second(
            self.cost,
            self.limits,
            streams=streams,
            context_tokens=context,
            members=members,
            hop_seconds=self.hop_seconds,
        )

    def far_decode(self, streams: int, *, context: int, members: int, added_seconds: float) -> float:
        return bounds.far_decode_tokens_per_second(
            self.cost,
            self.limits,
            streams=streams,
            context_tokens=context,
            members=members,
            hop_seconds=self.hop_seconds,
            added_seconds=added_seconds,
        )

    def first_token(self, prompt_tokens: int, *, members: int) -> float:
        return bounds.first_token_seconds(
            self.cost, self.limits, prompt_tokens=prompt_tokens, members=members, hop_seconds=self.hop_seconds
        )


class Runner:
    """Asks rings with prompts that are new every time, and for longer answers where streams did not decode together."""

    def __init__(self, model: BenchmarkModel, effort: Effort, count: Callable[[Messages], int]) -> None:
        self.model, self.effort = model, effort
        self._count, self._prompts = count, 0
        self._tokens: dict[int, int] = {}

    def tokens(self, streams: int) -> int:
        """Of each answer, where there are so many streams."""
        return self._tokens.get(streams, self.effort.tokens(streams))

    def ask(self, ring: Ring, *, streams: int, prompt_tokens: int = _PROMPT_TOKENS) -> Round:
        """Raises StreamFailed, also if an answer is not as long as asked."""
        while True:
            answers = self._ask(ring, streams, prompt_tokens)
            try:
                steady_rate(answers)
            except StreamFailed:
                if self.tokens(streams) >= _MOST_TOKENS:
                    raise
                self._tokens[streams] = min(_MOST_TOKENS, 2 * self.tokens(streams))
                continue
            return answers

    def _ask(self, ring: Ring, streams: int, prompt_tokens: int) -> Round:
        self._prompts += 1
        lengths = [prompt_tokens] if streams == 1 else decode_lengths(streams)
        prompts = [
            chat_prompt(length, seed=1000 * self._prompts + place, count=self._count)
            for place, length in enumerate(lengths)
        ]
        new_tokens = self.tokens(streams)
        answers = run_streams(ring.url, prompts, model=ring.model_id, new_tokens=new_tokens, extra=_EXTRA)
        if answers.tokens != streams * new_tokens:
            raise StreamFailed(f"{answers.tokens} tokens came, not {streams} × {new_tokens}")
        return answers

    def in_turn(self, points: Sequence[Taken], ask: Callable[[Taken], Round]) -> dict[Taken, list[Round]]:
        """Every point once as a warm-up, then all of them as often as the effort says, one after the other."""
        rounds: dict[Taken, list[Round]] = {point: [] for point in points}
        for repeat in range(-1, self.effort.repeats):
            for point in points:
                answers = ask(point)
                if repeat >= 0:
                    rounds[point].append(answers)
        return rounds


def steady_rate(streams: Round) -> float:
    """Tokens a second of all streams while all of them decode: from the moment when every stream has its first token
    to the end of the first stream. Raises StreamFailed if no token came then.
    """
    begin = max(stream.token_times[0] for stream in streams.streams)
    end = min(stream.token_times[-1] for stream in streams.streams)
    tokens = sum(begin < moment <= end for stream in streams.streams for moment in stream.token_times)
    if tokens == 0:
        raise StreamFailed(
            f"of {len(streams.streams)} streams the first ended before the last began, so they never decoded together;"
            " answers must be longer"
        )
    return tokens / (end - begin)


def _steady_rates(rounds: Sequence[Round]) -> tuple[float, ...]:
    return tuple(steady_rate(each) for each in rounds)


def _middle(runner: Runner, streams: int) -> int:
    """Tokens of context about the middle of a stream."""
    return _PROMPT_TOKENS + runner.tokens(streams) // 2


def measure_stages(runner: Runner, of: Machine, stages: int) -> list[Point]:
    """One number of stages: the points of both series."""
    with Ring(runner.model, stages=stages) as ring:
        rounds = runner.in_turn((_FEW, _MANY), lambda streams: runner.ask(ring, streams=streams))
    return [
        Point(
            _streams(streams),
            stages,
            _steady_rates(taken),
            of.decode(streams, context=_middle(runner, streams), members=stages + 1),
        )
        for streams, taken in rounds.items()
    ]


def measure_streams(runner: Runner, of: Machine, stages: int) -> list[Point]:
    with Ring(runner.model, stages=stages) as ring:
        rounds = runner.in_turn(STREAMS, lambda streams: runner.ask(ring, streams=streams))
    return [
        Point(
            "all streams",
            streams,
            _steady_rates(taken),
            of.decode(streams, context=_middle(runner, streams), members=stages + 1),
        )
        for streams, taken in rounds.items()
    ]


def measure_context(runner: Runner, of: Machine, stages: int) -> tuple[list[Point], list[Point]]:
    """Rates of decoding, and first tokens."""
    new_tokens, members = runner.effort.new_tokens, stages + 1
    with Ring(runner.model, stages=stages, context=CONTEXTS[-1]) as ring:
        rounds = runner.in_turn(
            CONTEXTS, lambda context: runner.ask(ring, streams=1, prompt_tokens=context - new_tokens)
        )
    rates, waits = [], []
    for context, taken in rounds.items():
        bound = of.decode(1, context=context - new_tokens // 2, members=members)
        rates.append(Point("1 stream", context, _steady_rates(taken), bound))
        seconds = tuple(each.first_token_seconds[0] for each in taken)
        waits.append(Point("1 stream", context, seconds, of.first_token(context - new_tokens, members=members)))
    return rates, waits


def measure_hops(runner: Runner, of: Machine, stages: int) -> list[Point]:
    """One ring with a relay before every member; the delay changes while it runs."""
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as made:
        delay = delay_relay.DelayFile(Path(made) / "delay")
        program = (sys.executable, "-m", "benchmarks.delay_relay")
        environment = {delay_relay.VARIABLE: str(delay.file)}
        with Ring(runner.model, stages=stages, program=program, environment=environment) as ring:

            def ask(point: tuple[int, int]) -> Round:
                streams, milliseconds = point
                delay.seconds = milliseconds / 1000
                return runner.ask(ring, streams=streams)

            wanted = [(streams, added) for streams in (_FEW, _MANY) for added in ADDED_MILLISECONDS]
            rounds = runner.in_turn(wanted, ask)
            delay.seconds = 0.0
    for (streams, added), taken in rounds.items():
        context = _middle(runner, streams)
        bound = of.far_decode(streams, context=context, members=stages + 1, added_seconds=added / 1000)
        points.append(Point(_streams(streams), added, _steady_rates(taken), bound))
    return points


def _streams(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def measure_machine(model: BenchmarkModel, stages: int) -> Machine:
    """Memory, arithmetic and a hop while no ring runs, and what a plan counts."""
    say("memory bandwidth and arithmetic")
    limits = bounds.measure(machine.cores())
    say("a hop without compute")
    hops = hop.measure(repeats=3, rounds=300)
    with Ring(model, stages=stages) as ring:
        cost = bounds.model_cost(bounds.plan_of(ring.pipe_file), model)
    fastest = min(figure.median.median for figure in hops if figure.name == "ring")
    return Machine(limits, cost, fastest / 1e6)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    effort = QUICK if options.quick else FULL
    # So that who is asked to end leaves no server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [name for name in CURVES if name in (options.curve or CURVES)]
    described = machine.describe("benchmarks.curves")
    print(machine.markdown(described), file=sys.stderr)
    asked = {"quick": options.quick, "stages": options.stages}
    try:
        unfinished = Unfinished(_UNFINISHED, identity(described, **asked), resume=options.resume)
    except OtherRun as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    model = models.ensure("smollm2")
    codec = TextCodec.load(files_of(model))
    if "machine" not in unfinished:
        unfinished.keep("machine", asdict(measure_machine(model, options.stages)))
    kept = unfinished["machine"]
    of = Machine(bounds.MachineLimits(**kept["limits"]), bounds.ModelCost(**kept["cost"]), kept["hop_seconds"])
    runner = Runner(model, effort, lambda messages: len(codec.encode_chat(messages, {})))
    curves = _measure(chosen, runner, of, options.stages, unfinished)

    text = curve_report.markdown(described, of.limits, of.hop_seconds, curves, repeats=effort.repeats)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "curves.md").write_text(text + "\n")
        data = {"machine": described, **kept, "curves": [asdict(curve) for curve in curves]}
        (options.output / "curves.json").write_text(json.dumps(data, indent=1) + "\n")
        curve_report.write_plot(options.output / "curves.svg", curves, title=model.title)
    if options.docs is not None:
        picture = options.docs.with_name("curves.svg")
        curve_report.write_plot(picture, curves, title=model.title)
        text += f"\n\n![Each curve beside its bound]({picture.name})"
        options.docs.write_text(replace_section(options.docs.read_text(), "curves", text))
    unfinished.forget()
    return 0


def _measure(chosen: Sequence[str], runner: Runner, of: Machine, stages: int, unfinished: Unfinished) -> list[Curve]:
    """The chosen curves; what was measured before is taken as it is."""

    def once(name: str, measure: Callable[[], Sequence[Point]]) -> list[Point]:
        if name not in unfinished:
            say(name)
            unfinished.keep(name, [asdict(point) for point in measure()])
        return [Point.of_json(point) for point in unfinished[name]]

    members = f"{stages} stages"
    curves = []
    if "stages" in chosen:
        points = [
            point
            for count in STAGES
            for point in once(_stages(count), lambda count=count: measure_stages(runner, of, count))  # type: ignore[misc]
        ]
        curves.append(Curve("stages", "stages beside the End Model", "tokens/s", tuple(points)))
    if "streams" in chosen:
        points = once("streams", lambda: measure_streams(runner, of, stages))
        curves.append(Curve(f"streams, {members}", "streams", "tokens/s", tuple(points)))
    if "context" in chosen:
        if "context" not in unfinished:
            say("context")
            rates, waits = measure_context(runner, of, stages)
            unfinished.keep("first token", [asdict(point) for point in waits])
            unfinished.keep("context", [asdict(point) for point in rates])
        for name, title, unit in (("context", "context", "tokens/s"), ("first token", "first token", "s")):
            points = [Point.of_json(point) for point in unfinished[name]]
            curves.append(Curve(f"{title}, {members}", "tokens of context", unit, tuple(points)))
    if "hops" in chosen:
        points = once("hops", lambda: measure_hops(runner, of, stages))
        curves.append(Curve(f"hops, {members}", "ms added to each hop", "tokens/s", tuple(points)))
    return curves


def _stages(count: int) -> str:
    return "1 stage" if count == 1 else f"{count} stages"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description="Curves, beside their bounds.")
    parser.add_argument("--quick", action="store_true", help="three samples a point instead of five, short answers")
    parser.add_argument("--curve", action="append", choices=CURVES, help="only this one; may be given twice")
    parser.add_argument("--stages", type=int, default=2, help="of all curves but the first (default: 2)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was cut short")
    parser.add_argument("--output", metavar="DIR", type=Path, help="write curves.md, curves.json and curves.svg there")
    parser.add_argument(
        "--docs", metavar="FILE", type=Path, help="replace the section curves of this page, and curves.svg beside it"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
