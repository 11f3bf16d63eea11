"""From logits to tokens, all rows of a frame at once.

The order is grammar, bias, penalties, mask (`adjustments.py`) → temperature → top_k → top_p → min_p → one draw
(`draws.py`). Randomness comes from a counter-based generator keyed by (seed, position), so a token depends on its own
row alone: not on who shares the batch, nor on when or how often the step is run. Rows may be several positions of one
sequence, each with the counts and the grammar's mask at that position. Greedy rows cost one argmax.

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), as numpy implements it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from languagepipes_node.end_model.adjustments import adjust, adjusts
from languagepipes_node.end_model.draws import (
    Bins,
    Float32,
    Float64,
    Int64,
    Truncation,
    draw_from_bins,
    draw_truncated,
    sums_of_bins,
    total_of,
    usable,
)
from languagepipes_node.end_model.sampling_rows import SampledToken, SamplingRow

__all__ = ["SampledToken", "Sampler", "SamplingRow"]

Failed = Callable[[int, Exception], None]

# Rows are worked on a few at a time, so that what is written is still in a core's cache when it is read: 1 MiB.
_SCORES_AT_ONCE = 2**18
# Fewer scores than this are not worth waking other threads for: about 0.2 ms of work.
_SCORES_FOR_THREADS = 2**19


class NoTokenLeftError(ValueError):
    """Masks exclude every token of the vocabulary."""


@dataclass(frozen=True)
class _Work:
    """A frame's rows on their way. scores: [R, vocabulary]; draws: [R], in [0, 1); sampled: [R], whether the row has a
    token; tokens, largest: [R], of scores as adjusted; temperatures: [R]; sums: [R, bins] where `weighed`; raw: by row,
    what log probabilities are read from."""

    scores: Float32
    rows: Sequence[SamplingRow]
    truncations: list[Truncation | None]  # None: the likeliest token
    bins: Bins
    draws: Float64
    sampled: npt.NDArray[np.bool_]
    tokens: Int64
    largest: Float32
    temperatures: Float32
    weighed: npt.NDArray[np.bool_]
    sums: Float32
    raw: dict[int, Float32]


class Sampler:
    """Keeps one random generator, threads and buffers to reuse; no state passes from one call to the next."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0, counter=0)
        self._fresh = self._philox.state
        self._threads: ThreadPoolExecutor | None = None
        self._buffers: list[Float32] = []  # free ones; each was zero beyond the vocabulary from the start

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], failed: Failed | None = None
    ) -> list[SampledToken | None]:
        """logits: float32 [R, vocabulary], changed in place where a row asks for it, and kept by what is returned as
        long as log probabilities may be read from it; rows: R. failed: told of a row at which something was raised;
        without it, that is raised. None: the row is not finite, or failed."""
        scores: Float32 = logits.detach().to("cpu", torch.float32).contiguous().numpy()
        truncations = [_truncation_of(row) for row in rows]
        work = _work_of(scores, rows, truncations, self._draws(rows, truncations))
        errors = self._prepare(work)
        for index in sorted(errors):
            if failed is None:
                raise errors[index]
            failed(index, errors[index])
        _draw_whole(work)
        return [
            SampledToken(token, work.raw.get(index), row.logprobs or 0) if work.sampled[index] else None
            for index, (row, token) in enumerate(zip(rows, work.tokens.tolist(), strict=True))
        ]

    def uniform(self, seed: int, position: int) -> float:
        """The one draw in [0, 1) that belongs to (seed, position)."""
        state = self._fresh
        state["state"]["key"][0] = seed % 2**64
        state["state"]["counter"][0] = position
        self._philox.state = state
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53

    def _prepare(self, work: _Work) -> dict[int, Exception]:
        """Everything that reads whole rows, by as many threads as torch has. Returns what rows raised."""
        total, size = work.scores.shape
        most = max(1, _SCORES_AT_ONCE // size)
        parts = [range(start, min(start + most, total)) for start in range(0, total, most)]
        # Looking for the largest costs a quarter of what weighing does.
        busy = size * (total + 3 * int(np.count_nonzero(work.weighed))) // 4
        threads = max(1, min(torch.get_num_threads(), len(parts), busy // _SCORES_FOR_THREADS))
        buffers = [self._buffer(work.bins, min(most, total)) for _ in range(threads)]
        errors: dict[int, Exception] = {}
        left = iter(parts)  # whoever is free takes the next; one step of a list's iterator is not divisible

        def run(buffer: Float32) -> None:
            for part in left:
                _prepare_rows(work, part, buffer, errors)

        if threads > 1 and self._threads is None:
            self._threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="sampling")
        others = [self._threads.submit(run, buffer) for buffer in buffers[1:]] if self._threads else []
        run(buffers[0])
        for other in others:
            if not other.cancel():  # one that has not even begun is not waited for
                other.result()
        self._buffers += buffers
        return errors

    def _buffer(self, bins: Bins, rows: int) -> Float32:
        width = bins.count * bins.line
        while self._buffers:
            buffer = self._buffers.pop()
            if buffer.shape[1] == width and len(buffer) >= rows:
                return buffer
        return bins.empty(rows, 0.0)

    def _draws(self, rows: Sequence[SamplingRow], truncations: list[Truncation | None]) -> Float64:
        return np.array(
            [
                0.0 if truncation is None else self.uniform(row.seed, row.position)
                for row, truncation in zip(rows, truncations, strict=True)
            ]
        )


def _work_of(
    scores: Float32, rows: Sequence[SamplingRow], truncations: list[Truncation | None], draws: Float64
) -> _Work:
    total, size = scores.shape
    bins = Bins.of(size)
    weighed = np.array([each is not None and (each.keeps_all or each.needs_total) for each in truncations], np.bool_)
    return _Work(
        scores=scores,
        rows=rows,
        truncations=truncations,
        bins=bins,
        draws=draws,
        sampled=np.zeros(total, np.bool_),
        tokens=np.zeros(total, np.int64),
        largest=np.zeros(total, np.float32),
        temperatures=np.array([usable(row.parameters.temperature) for row in rows], np.float32),
        weighed=weighed,
        sums=np.empty((total, bins.line), np.float32) if weighed.any() else np.empty((0, 0), np.float32),
        raw={},
    )


def _truncation_of(row: SamplingRow) -> Truncation | None:
    """None where only the likeliest token can be drawn."""
    parameters = row.parameters
    if parameters.temperature <= 0 or parameters.top_k == 1 or parameters.top_p <= 0:
        return None
    return Truncation(parameters.top_k, parameters.top_p, parameters.min_p)


def _prepare_rows(work: _Work, part: range, buffer: Float32, errors: dict[int, Exception]) -> None:
    """Rows `part`: whether they are finite, their adjustments, the largest score, the weight of each bin, and tokens
    of those that are truncated."""
    first, stop = part.start, part.stop
    scores = work.scores[first:stop]
    number = np.arange(len(part))
    likeliest = scores.argmax(axis=1)  # numpy's is ten times faster than torch's on a CPU
    largest = scores[number, likeliest]
    # A NaN is both the least and the largest.
    finite = np.isfinite(largest) & np.isfinite(scores.min(axis=1))
    work.sampled[first:stop] = finite
    for place in np.flatnonzero(finite).tolist():
        row, own = work.rows[first + place], scores[place]
        with _alone(first + place, work, errors):
            adjusted = adjusts(row)
            if row.logprobs is not None:
                work.raw[first + place] = own.copy() if adjusted else own
            if adjusted:
                adjust(own, row)
                likeliest[place] = own.argmax()
                largest[place] = own[likeliest[place]]
                if not np.isfinite(largest[place]):
                    raise NoTokenLeftError("grammar, bias, penalties and mask leave nothing to sample")
    finite &= work.sampled[first:stop]
    work.tokens[first:stop], work.largest[first:stop] = likeliest, largest
    wanted = work.weighed[first:stop] & finite
    if wanted.all():
        work.sums[first:stop] = sums_of_bins(scores, largest, work.temperatures[first:stop], work.bins, buffer)
    else:
        for place in np.flatnonzero(wanted).tolist():
            one = slice(first + place, first + place + 1)
            work.sums[one] = sums_of_bins(
                work.scores[one], work.largest[one], work.temperatures[one], work.bins, buffer
            )
    for index in part:
        truncation = work.truncations[index]
        if truncation is not None and not truncation.keeps_all and work.sampled[index]:
            with _alone(index, work, errors):
                work.tokens[index] = _draw_truncated(work, index, truncation)


def _draw_truncated(work: _Work, index: int, truncation: Truncation) -> int:
    return draw_truncated(
        work.scores[index],
        float(work.largest[index]),
        usable(work.rows[index].parameters.temperature),
        truncation,
        total_of(work.sums[index]) if work.weighed[index] else 0.0,
        float(work.draws[index]),
        work.bins,
    )


def _draw_whole(work: _Work) -> None:
    """The tokens of rows whose whole vocabulary may be drawn, all together."""
    whole = [
        index
        for index, truncation in enumerate(work.truncations)
        if truncation is not None and truncation.keeps_all and work.sampled[index]
    ]
    if whole:
        rows = np.array(whole, np.int64)
        work.tokens[rows] = draw_from_bins(
            work.scores, rows, work.largest[rows], work.temperatures[rows], work.sums[rows], work.draws[rows], work.bins
        )


@contextlib.contextmanager
def _alone(index: int, work: _Work, errors: dict[int, Exception]) -> Iterator[None]:
    """Rows do not depend on each other: what is raised at row `index` is its own."""
    try:
        yield
    except Exception as error:
        errors[index] = error
        work.sampled[index] = False
