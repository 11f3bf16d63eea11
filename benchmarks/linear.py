"""One linear layer: torch in float32 and in bfloat16, and our kernels on the same bfloat16 weights at each level.

    python benchmarks/linear.py                 this CPU as it is, and each lower level of our own
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \\
        python benchmarks/linear.py --level 2   as a CPU that offers AVX2 only

Weights rotate through more copies than the last-level cache holds, as a decode step finds them. Contenders take turns,
and the least time of each counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from languagepipes_node.model import kernels
from languagepipes_node.model.matrix import Matrix, multiply, panels, panels_pay, row_major

# One large layer; SmolLM2's gate and up, and down; Qwen3-0.6B's gate and up, and down.
SHAPES = ((4096, 12288), (3072, 576), (576, 1536), (6144, 1024), (1024, 3072))
ROWS = (1, 4, 16, 64, 512)
CACHE_BYTES = 200_000_000


def least_milliseconds(
    acts: dict[str, Callable[[], object]], runs: int, clock: Callable[[], float]
) -> dict[str, float]:
    """The least of `runs` timings of each, in turns."""
    best = dict.fromkeys(acts, float("inf"))
    for _ in range(runs + 1):
        for name, act in acts.items():
            started = clock()
            act()
            best[name] = min(best[name], clock() - started)
    return {name: seconds * 1e3 for name, seconds in best.items()}


def ours_at(level: int, half: list[torch.Tensor]) -> list[Matrix]:
    """Our own way to keep these weights at a level."""
    kernels.use_level(level)
    pays = panels_pay(torch.bfloat16, torch.device("cpu"))
    return [panels(weight.clone()) if pays else row_major(weight) for weight in half]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--level", type=int, choices=kernels.LEVELS, help="our kernels at this level only")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--cpu-time", action="store_true", help="processor time: for one thread beside other work")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    levels = [level for level in kernels.LEVELS if level <= kernels.library()[1]]
    if options.level is not None:
        levels = [options.level]

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, least of {options.runs}, milliseconds")
    named = " | ".join(f"ours, {kernels.LEVELS[level]}" for level in levels)
    print(f"| width × depth | rows | torch float32 | torch bfloat16 | {named} | torch bfloat16 ÷ ours |")
    print("| --- | --- | --- | --- |" + " --- |" * (len(levels) + 1))
    for width, depth in SHAPES:
        copies = max(1, CACHE_BYTES // (width * depth * 2))
        half = [torch.randn(width, depth).bfloat16() for _ in range(copies)]
        whole = [weight.float() for weight in half]
        matrices = {level: ours_at(level, half) for level in levels}
        for rows in options.rows:
            x = torch.randn(rows, depth)
            x_half = x.bfloat16()
            turn = iter(range(10**9))

            def float32() -> torch.Tensor:
                return torch.nn.functional.linear(x, whole[next(turn) % copies])  # noqa: B023

            def bfloat16() -> torch.Tensor:
                return torch.nn.functional.linear(x_half, half[next(turn) % copies])  # noqa: B023

            def ours(level: int) -> torch.Tensor:
                kernels.use_level(level)
                return multiply(x, matrices[level][next(turn) % copies])  # noqa: B023

            acts: dict[str, Callable[[], object]] = {"float32": float32, "bfloat16": bfloat16}
            acts |= {kernels.LEVELS[level]: (lambda level=level: ours(level)) for level in levels}
            with torch.inference_mode():
                least = least_milliseconds(acts, options.runs, clock)
            shown = " | ".join(f"{value:.3f}" for value in least.values())
            best = min(value for name, value in least.items() if name in kernels.LEVELS.values())
            print(f"| {width} × {depth} | {rows} | {shown} | {least['bfloat16'] / best:.2f} |", flush=True)


if __name__ == "__main__":
    main()
