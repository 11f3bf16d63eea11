"""One linear layer, three ways: torch in float32, torch in bfloat16, and our kernel on bfloat16 weights.

    python benchmarks/linear.py                 this CPU as it is
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 \\
        python benchmarks/linear.py --level 2   as a CPU that offers AVX2 only

Weights rotate through more copies than the last-level cache holds, as a decode step finds them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
from languagepipes_node.model import kernels

SHAPES = ((4096, 12288), (1536, 576))
ROWS = (1, 2, 4, 8, 16, 64, 256)
CACHE_BYTES = 200_000_000


def milliseconds(act: Callable[[], object], runs: int) -> float:
    act()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--level", type=int, choices=(2, 3), help="instruction set of our kernel: 2 AVX2, 3 AVX-512")
    options = parser.parse_args()
    if options.level is not None:
        kernels.use_level(options.level)

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, median of {options.runs}, milliseconds")
    print("| width × depth | rows | torch float32 | torch bfloat16 | our kernel | against the better one |")
    print("| --- | --- | --- | --- | --- | --- |")
    for width, depth in SHAPES:
        copies = max(1, CACHE_BYTES // (width * depth * 2))
        whole = [torch.randn(width, depth) for _ in range(copies)]
        half = [weight.bfloat16() for weight in whole]
        for rows in ROWS:
            x = torch.randn(rows, depth)
            x_half = x.bfloat16()
            turn = iter(range(10**9))

            def float32() -> torch.Tensor:
                return torch.nn.functional.linear(x, whole[next(turn) % copies])  # noqa: B023

            def bfloat16() -> torch.Tensor:
                return torch.nn.functional.linear(x_half, half[next(turn) % copies])  # noqa: B023

            def ours() -> torch.Tensor:
                return kernels.linear(x, half[next(turn) % copies])  # noqa: B023

            with torch.inference_mode():
                a, b, c = (milliseconds(act, options.runs) for act in (float32, bfloat16, ours))
            print(f"| {width} × {depth} | {rows} | {a:.2f} | {b:.2f} | {c:.2f} | {min(a, b) / c:.2f}× |", flush=True)


if __name__ == "__main__":
    main()
