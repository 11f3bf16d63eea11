"""What a row costs the sampler: before its token is known, and for log probabilities, after the next frame has left.

    python -m benchmarks.sampling [--against REVISION] [--rows 1 16 64] [--repeats 15]

Logits are normal with standard deviation 2.5, with a few tokens far above the rest as a language model has them
("peaked"), or without ("flat": the nucleus of top_p 0.9 is a tenth of the vocabulary). Figures are µs a row, the least
of the repeats. --against: the same of sampling.py at a git revision where that was one file, in turns with today's;
there log probabilities are part of the first figure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from languagepipes_node.end_model import sampling as current
from languagepipes_node.end_model.requests import SamplingParameters

VOCABULARIES = (49_152, 151_936)
SOURCE = "node/languagepipes_node/end_model/sampling.py"
GREEDY = SamplingParameters(temperature=0.0)


def sampling_at(revision: str) -> types.ModuleType:
    root = Path(__file__).resolve().parent.parent
    text = subprocess.run(["git", "show", f"{revision}:{SOURCE}"], cwd=root, check=True, capture_output=True).stdout
    module = types.ModuleType("sampling_before")
    sys.modules[module.__name__] = module
    exec(compile(text, SOURCE, "exec"), module.__dict__)
    return module


def cases(vocabulary: int) -> dict[str, tuple[bool, SamplingParameters, dict[str, Any]]]:
    """name → (flat, parameters, fields of SamplingRow)."""
    counts = {token * 7: 1 + token % 3 for token in range(500)}
    prompt_ids = np.arange(0, 6000, 3)
    few, many = np.ones(vocabulary, np.bool_), np.zeros(vocabulary, np.bool_)
    few[::500], many[::10] = False, True
    bias = tuple((token * 11, 1.0) for token in range(300))
    return {
        "greedy": (False, GREEDY, {}),
        "temperature 1": (False, SamplingParameters(), {}),
        "temperature 0.7": (False, SamplingParameters(temperature=0.7), {}),
        "top_k 50": (False, SamplingParameters(top_k=50), {}),
        "top_p 0.9": (False, SamplingParameters(top_p=0.9), {}),
        "top_p 0.9, flat": (True, SamplingParameters(top_p=0.9), {}),
        "top_p 0.999, flat": (True, SamplingParameters(top_p=0.999), {}),
        "min_p 0.05": (False, SamplingParameters(min_p=0.05), {}),
        "top_k 20, top_p 0.8, temperature 0.7": (False, SamplingParameters(temperature=0.7, top_p=0.8, top_k=20), {}),
        "presence, frequency": (
            False,
            SamplingParameters(presence_penalty=0.5, frequency_penalty=0.2),
            {"counts": counts},
        ),
        "repetition": (
            False,
            SamplingParameters(repetition_penalty=1.1),
            {"counts": counts, "prompt_ids": prompt_ids},
        ),
        "logit_bias of 300": (False, SamplingParameters(logit_bias=bias), {}),
        "grammar, few tokens": (False, SamplingParameters(), {"forbidden": few}),
        "grammar, most tokens": (False, SamplingParameters(), {"forbidden": many}),
        "greedy, logprobs 5": (False, GREEDY, {"logprobs": 5}),
        "greedy, logprobs 20": (False, GREEDY, {"logprobs": 20}),
        "temperature 1, logprobs 5": (False, SamplingParameters(), {"logprobs": 5}),
    }


def logits_of(rows: int, vocabulary: int, *, flat: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, vocabulary, generator=generator) * 2.5
    if not flat:
        for row in logits:
            row[torch.randint(vocabulary, (40,), generator=generator)] += torch.linspace(20, 5, 40)
    return logits


def seconds_of(sampler: Any, logits: torch.Tensor, rows: Sequence[Any], work: torch.Tensor) -> tuple[float, float]:
    """Until tokens are known; from then until log probabilities are."""
    work.copy_(logits)
    began = time.perf_counter()
    sampled = sampler.sample(work, rows)
    known = time.perf_counter()
    for token in sampled:
        assert token is not None
        _ = token.logprobs
    return known - began, time.perf_counter() - known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REVISION", help="a git revision to compare with")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    contenders: list[tuple[str, Any]] = [("now", current)]
    if options.against:
        contenders.insert(0, (options.against, sampling_at(options.against)))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; µs a row")
    samplers = {name: module.Sampler() for name, module in contenders}
    for vocabulary in VOCABULARIES:
        for count in options.rows:
            print(f"\nvocabulary {vocabulary}, {count} rows")
            for case, (flat, parameters, fields) in cases(vocabulary).items():
                if options.only not in case:
                    continue
                logits = logits_of(count, vocabulary, flat=flat)
                work = torch.empty_like(logits)
                best: dict[str, tuple[float, float]] = {}
                for _ in range(options.repeats):
                    for name, module in contenders:
                        best[name] = least(
                            best.get(name),
                            seconds_of(samplers[name], logits, rows_of(module, count, parameters, fields), work),
                        )
                print(shown(case, best, count))


def rows_of(module: Any, count: int, parameters: SamplingParameters, fields: dict[str, Any]) -> list[Any]:
    given = {"counts": {}, **fields}
    return [module.SamplingRow(parameters, seed, 9, **given) for seed in range(count)]


def least(known: tuple[float, float] | None, new: tuple[float, float]) -> tuple[float, float]:
    return new if known is None else (min(known[0], new[0]), min(known[1], new[1]))


def shown(case: str, best: dict[str, tuple[float, float]], rows: int) -> str:
    def micro(seconds: float) -> str:
        return f"{seconds / rows * 1e6:8.1f}"

    parts = [
        f"{name}: {micro(first)}" + (f" + {micro(later)} later" if name == "now" else "")
        for name, (first, later) in best.items()
    ]
    return f"{case:38} " + "   ".join(parts)


if __name__ == "__main__":
    main()
