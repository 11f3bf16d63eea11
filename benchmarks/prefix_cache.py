"""What a prompt costs whose beginning was computed before, and what it costs to know that.

    python -m benchmarks.prefix_cache [--repeats 5] [--words 1000] [--stages 2]

Under `languagepipes up`: the time to the first token of a question behind a system message of so many words that is
new, and of another question behind the same message. Then, in this process, the hash chain alone, for 1,000 tokens.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from languagepipes_node.end_model.prefix_keys import PrefixKeys

from benchmarks import machine, models
from benchmarks.figures import Spread, markdown_table
from benchmarks.prompts import _WORDS, Messages
from benchmarks.ring import Ring
from benchmarks.streams import run_streams

_QUESTIONS = ("What is this about?", "Which of these words is the longest?")


def question(words: int, *, seed: int, which: int) -> Messages:
    """Equal seeds give one system message of so many words."""
    system = " ".join(random.Random(seed).choices(_WORDS, k=words))
    return [{"role": "system", "content": system}, {"role": "user", "content": _QUESTIONS[which]}]


def first_token_seconds(ring: Ring, prompt: Messages) -> float:
    answer = run_streams(ring.url, [prompt], model=ring.model_id, new_tokens=2, extra={"ignore_eos": True})
    return answer.first_token_seconds[0]


def hash_microseconds(tokens: int, *, block_tokens: int, repeats: int) -> Spread:
    """Of the keys of all full blocks of so many tokens."""
    prompt = tuple(random.Random(0).choices(range(49152), k=tokens))
    samples = []
    for _ in range(repeats):
        keys = PrefixKeys(block_tokens)
        started = time.perf_counter()
        keys.extend([], prompt, blocks=tokens // block_tokens, domain="")
        samples.append(1e6 * (time.perf_counter() - started))
    return Spread.of(samples)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--words", type=int, default=1000)
    parser.add_argument("--stages", type=int, default=2)
    options = parser.parse_args()
    model = models.ensure("smollm2")
    first, again = [], []
    with Ring(model, stages=options.stages) as ring:
        for warm_up in range(2):
            first_token_seconds(ring, question(options.words, seed=1000 + warm_up, which=0))
        for repeat in range(options.repeats):
            first.append(first_token_seconds(ring, question(options.words, seed=repeat, which=0)))
            again.append(first_token_seconds(ring, question(options.words, seed=repeat, which=1)))
    ratios = [later / earlier for earlier, later in zip(first, again, strict=True)]
    hashing = hash_microseconds(1000, block_tokens=64, repeats=200)
    rows = [
        ["first token, new system message", f"{Spread.of([1000 * value for value in first])} ms"],
        ["first token, the same again", f"{Spread.of([1000 * value for value in again])} ms"],
        ["again ÷ new", f"{Spread.of(ratios)}"],
        ["least of again ÷ least of new", f"{min(again) / min(first):.3f}"],
        ["keys of 1,000 tokens: median; least", f"{hashing.median:.0f}; {hashing.least:.0f} µs"],
    ]
    print(machine.markdown(machine.describe("benchmarks.prefix_cache")))
    print(f"\n{model.title}, a system message of {options.words} words, {options.stages + 1} members\n")
    print(markdown_table([f"median of {options.repeats} (least to greatest)", ""], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
