"""One matrix product by quantised and 16-bit weights beside float32: torch's, and our own kernel's.

    python -m benchmarks.quantised_products --level 2      on any processor, by the kernels for AVX2

One thread, processor time. All contenders take turns in each round; a ratio is taken within a round, and its median
over the rounds counts, so other work on the machine falls on each alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from languagepipes_node.model import kernels, packed
from languagepipes_node.model.matrix import Matrix, multiply, row_major
from languagepipes_node.model.quantised import QuantisedWeight

# SmolLM2's gate or up, down, and q, k and v; Qwen3-0.6B's gate or up, and down.
SHAPES = ((1536, 576), (576, 1536), (960, 576), (3072, 1024), (1024, 3072))
ROWS = (1, 4, 16, 64)
_MULTIPLICATIONS_A_SAMPLE = 40_000_000
BASES = ("torch, float32", "ours, float32")


def quantised(width: int, depth: int, bits: int) -> Matrix:
    """Random values of 8 or 4 bits, packed as a member keeps them."""
    scales = (torch.rand(width, depth // 32) * 0.01).half()
    if bits == 8:
        values = torch.randint(-127, 128, (width, depth), dtype=torch.int8)
        return packed.pack(QuantisedWeight(values, scales))
    values = torch.randint(0, 256, (width, depth // 2), dtype=torch.uint8)
    return packed.pack(QuantisedWeight(values, scales, scales * -7))


def seconds(act: Callable[[], object], times: int) -> float:
    """Processor seconds of one of them; the caches are warmed first."""
    act()
    started = time.thread_time()
    for _ in range(times):
        act()
    return (time.thread_time() - started) / times


def measure(width: int, depth: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round."""
    weight, x = torch.randn(width, depth), torch.randn(rows, depth)
    ours = {
        "float32": row_major(weight),
        "bfloat16": row_major(weight.bfloat16()),
        "int8": quantised(width, depth, 8),
        "int4": quantised(width, depth, 4),
    }
    acts: dict[str, Callable[[], object]] = {"torch, float32": partial(torch.nn.functional.linear, x, weight)}
    acts |= {f"ours, {name}": partial(multiply, x, matrix) for name, matrix in ours.items()}
    times = max(1, _MULTIPLICATIONS_A_SAMPLE // (width * depth * rows))
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            taken[name].append(seconds(act, times))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--level", type=int, choices=kernels.LEVELS, help="the kernels of this level")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    options = parser.parse_args()
    kernels.use_level(options.level)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {kernels.LEVELS[kernels.library()[1]]}, {options.rounds} rounds")
    print("| width × depth | rows | contender | least ms | GOP/s | torch float32 ÷ it | our float32 ÷ it |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for width, depth in SHAPES:
        for rows in options.rows:
            with torch.inference_mode():
                taken = measure(width, depth, rows, options.rounds)
            for name, own in taken.items():
                ratios = [statistics.median(b / o for b, o in zip(taken[base], own, strict=True)) for base in BASES]
                least = min(own)
                print(
                    f"| {width} × {depth} | {rows} | {name} | {least * 1e3:.3f} | "
                    f"{2e-9 * width * depth * rows / least:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
