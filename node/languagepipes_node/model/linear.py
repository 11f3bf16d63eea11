"""Matrix products in which weights at rest and arithmetic may have different dtypes, and which pairing is fastest.

`project` multiplies in the dtype of its input. Where that is the weight's own, torch's kernel for it runs; where the
input is float32 and the weight is not, the weight is widened tile by tile into a small float32 buffer, so that a
station never needs a float32 copy of its weights. Which of the two is faster depends on the processor and on the
number of rows (without AVX512-BF16 bfloat16 arithmetic is several times slower than float32 from a few rows on, and
float16 is so on most); `measure` finds out at start-up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Elements of the float32 buffer (4 MiB): large enough to hide the calls, small enough for a shared cache.
_TILE_ELEMENTS = 1 << 20
# Rows at which the pairings are compared; a step with a number of rows in between uses the decision below it.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 128)
_REPEATS = 5
_BUDGET_SECONDS = 1.5
_HOPELESS = 3.0


def project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: [rows, in]; weight: [out, in]; bias: [out] or None. Returns [rows, out] in x's dtype."""
    if x.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    rows, outputs = x.shape[0], weight.shape[0]
    height = max(1, _TILE_ELEMENTS // weight.shape[1])
    if outputs <= height:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    tile = torch.empty((height, weight.shape[1]), dtype=x.dtype, device=x.device)
    for start in range(0, outputs, height):
        stop = min(start + height, outputs)
        wide = tile[: stop - start]
        wide.copy_(weight[start:stop])
        torch.mm(x, wide.t(), out=out[:, start:stop])
    return out if bias is None else out.add_(bias)


@dataclass(frozen=True)
class Compute:
    """The dtype of a station's arithmetic by number of rows: (at least so many rows, dtype), ascending from 1."""

    choices: tuple[tuple[int, torch.dtype], ...]

    def dtype_for(self, rows: int) -> torch.dtype:
        chosen = self.choices[0][1]
        for least, dtype in self.choices:
            if rows < least:
                break
            chosen = dtype
        return chosen

    def __str__(self) -> str:
        return ", ".join(f"{str(dtype).removeprefix('torch.')} from {rows} rows" for rows, dtype in self.choices)


def always(dtype: torch.dtype) -> Compute:
    """One dtype whatever the number of rows."""
    return Compute(((1, dtype),))


def measure(
    weights: Sequence[torch.Tensor], clock: Callable[[], float] = time.perf_counter
) -> Compute:
    """Time both pairings on these weights (one layer's, or a piece of the head) and keep the faster for each bucket.

    Takes at most about two seconds. On a GPU, and for float32 weights, there is nothing to choose.
    """
    storage = weights[0].dtype
    if storage == torch.float32 or weights[0].device.type != "cpu":
        return always(storage)
    started = clock()
    choices: list[tuple[int, torch.dtype]] = []
    ratio = 0.0
    for rows in ROW_BUCKETS:
        # Slower by this much at fewer rows, or out of time: the trend is known, since widening's cost is shared by all rows.
        if choices and (ratio > _HOPELESS or clock() - started > _BUDGET_SECONDS):
            dtype = torch.float32 if ratio > 1 else storage
        else:
            own = _seconds(weights, rows, storage, clock)
            wide = _seconds(weights, rows, torch.float32, clock)
            ratio = own / wide
            dtype = torch.float32 if ratio > 1 else storage
        if not choices or choices[-1][1] != dtype:
            choices.append((rows, dtype))
    return Compute(tuple(choices))


def _seconds(
    weights: Sequence[torch.Tensor], rows: int, dtype: torch.dtype, clock: Callable[[], float]
) -> float:
    """The least of a few timings of all products: noise only ever adds."""
    inputs = [torch.full((rows, weight.shape[1]), 0.01, dtype=dtype) for weight in weights]
    best = float("inf")
    for attempt in range(_REPEATS):
        begin = clock()
        for x, weight in zip(inputs, weights, strict=True):
            project(x, weight)
        spent = clock() - begin
        best = min(best, spent)
        if attempt and spent > _BUDGET_SECONDS / 10:
            break
    return best
