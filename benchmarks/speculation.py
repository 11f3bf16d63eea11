"""What speculative decoding brings and costs, over links that are far.

    python -m benchmarks.speculation [--repeats 5] [--delay-ms 5] [--streams 1] [--tokens 128]

Two rings of three members of SmolLM2 with mTLS in this process, one without drafts and one with
`speculativeDecoding: auto`; each link passes a relay that adds a delay one way. Both answer the same prompts in turns:
a list that goes on as it began, greedily (*repetitive*), and random words, at temperature 1 (*random*). The table has
tokens a second, the ratio of each pair, and how many drafts were sent and were right. Equal answers are counted: where
a member's numbers do not depend on how many rows a step has, all are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from languagepipes_api.member_settings import SpeculativeDecoding
from languagepipes_node import metrics, process
from tokenizers import Tokenizer  # type: ignore[import-untyped]

from benchmarks import machine, models
from benchmarks.figures import Spread, markdown_table
from benchmarks.prompts import _WORDS

sys.path.insert(0, str(models.ROOT / "tests"))
# As members of `up` do, and before torch is imported.
process.limit_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or None)

from languagepipes_node.end_model.engine import EngineSettings  # noqa: E402
from languagepipes_node.end_model.requests import SamplingParameters  # noqa: E402
from languagepipes_node.model.architecture import Architecture  # noqa: E402
from support.relayed_link import RelayedLink  # noqa: E402
from support.thread_ring import GREEDY, ThreadRing, plan_of  # noqa: E402

_STAGES = 2
# As the role end-model sets it: a thread that holds the interpreter for the default 5 ms would be the hop.
_SWITCH_INTERVAL_SECONDS = 0.0005
Answers = list[list[int]]


@dataclass(frozen=True)
class Text:
    """One kind of text: what it begins with, and how it goes on."""

    name: str
    least_ratio: float

    def prompt(self, seed: int) -> str:
        """Of other words for every seed."""
        words = random.Random(seed).sample(_WORDS, 12)
        if self.name == "random":
            return " ".join(words) + "."
        lines = [f"- the {words[0]} is {words[1]}, the {words[2]} is {words[3]}, and so it was.\n"]
        return "".join(lines * 6)

    def sampling(self, seed: int) -> SamplingParameters:
        """Greedy, or a draw from the model's whole distribution."""
        return SamplingParameters(seed=seed) if self.name == "random" else GREEDY


TEXTS = (Text("repetitive", 2.0), Text("random", 0.97))


@dataclass
class Samples:
    """Of one kind of text, one a round."""

    off: list[float] = field(default_factory=list)
    on: list[float] = field(default_factory=list)
    drafted: float = 0.0
    accepted: float = 0.0
    equal: int = 0
    answers: int = 0

    @property
    def ratio(self) -> Spread:
        return Spread.of([on / off for off, on in zip(self.off, self.on, strict=True)])


@contextmanager
def ring(model: Path, *, speculation: SpeculativeDecoding, delay_seconds: float, streams: int) -> Iterator[ThreadRing]:
    """Three members, each link delayed one way."""
    architecture = Architecture.from_config(json.loads((model / "config.json").read_text()))
    layers = architecture.layer_count
    ranges = [(1, (layers + 1) // 2), ((layers + 1) // 2, layers)]
    plan = plan_of(architecture, ranges, dtype="bfloat16", blocks=max(64, 16 * streams), frame_tokens=512)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())

        def through(address: str) -> str:
            return stack.enter_context(RelayedLink(address, delay_seconds=delay_seconds)).address

        settings = EngineSettings(shared_cores=True, prefix_cache=False, speculation=speculation)
        made = ThreadRing(model, plan, Path(directory), settings=settings, through=through)
        yield stack.enter_context(made)


def measure(
    one: ThreadRing, prompts: list[list[int]], tokens: int, sampling: SamplingParameters
) -> tuple[float, Answers]:
    """(tokens a second of all streams together, from submission to the last token; the answers)."""
    started = time.perf_counter()
    answers = one.generate(prompts, tokens, sampling=sampling)
    return tokens * len(prompts) / (time.perf_counter() - started), answers


def _counted() -> tuple[float, float]:
    values = [
        sample.value
        for counter in (metrics.DRAFTED_TOKENS, metrics.ACCEPTED_TOKENS)
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    ]
    return values[0], values[1]


def run(model: Path, options: argparse.Namespace) -> dict[str, Samples]:
    """All rounds, off and on in turns; who begins changes with the round."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    samples = {text.name: Samples() for text in TEXTS}
    delay = options.delay_ms / 1e3
    with (
        ring(model, speculation="none", delay_seconds=delay, streams=options.streams) as off,
        ring(model, speculation="auto", delay_seconds=delay, streams=options.streams) as on,
    ):
        for number in range(-1, options.repeats):  # the first is for the costs to be measured
            for text in TEXTS:
                seeds = [1000 * (number + 2) + stream for stream in range(options.streams)]
                prompts = [tokenizer.encode(text.prompt(seed)).ids for seed in seeds]
                before, speed, answers = _counted(), {}, {}
                for name in ("off", "on") if number % 2 else ("on", "off"):
                    one = on if name == "on" else off
                    speed[name], answers[name] = measure(one, prompts, options.tokens, text.sampling(seeds[0]))
                if number < 0:
                    continue
                found, after = samples[text.name], _counted()
                found.off.append(speed["off"])
                found.on.append(speed["on"])
                found.drafted += after[0] - before[0]
                found.accepted += after[1] - before[1]
                found.answers += options.streams
                found.equal += sum(a == b for a, b in zip(answers["off"], answers["on"], strict=True))
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--delay-ms", type=float, default=5.0, help="added to each hop")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--model", type=Path, help="a directory of safetensors in place of SmolLM2's")
    options = parser.parse_args()
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    directory = options.model or models.ensure("smollm2").directory
    samples = run(directory, options)
    rows = [
        [
            text.name,
            str(Spread.of(found.off)),
            str(Spread.of(found.on)),
            str(found.ratio),
            f"≥ {text.least_ratio}",
            f"{found.drafted:.0f}; {found.accepted:.0f}",
            f"{found.equal} of {found.answers}",
        ]
        for text in TEXTS
        for found in (samples[text.name],)
    ]
    print(machine.markdown(machine.describe("benchmarks.speculation")))
    print(
        f"\n{_STAGES + 1} members, {options.delay_ms:g} ms added to each hop, {options.streams} streams of"
        f" {options.tokens} tokens; median of {options.repeats} (least to greatest)\n"
    )
    header = ["text", "tokens/s, off", "tokens/s, auto", "auto ÷ off", "asked", "drafts; right", "equal answers"]
    print(markdown_table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
