"""One token from scores and one number in [0, 1): the arithmetic of a draw. It knows neither requests nor sequences.

A row's result depends on the row alone, bit for bit, whatever rows are worked on beside it: everything here is either
done element by element, where numpy's results do not depend on the place, or a sum in an order that only the
size of the vocabulary decides.

Weights are exp((score - largest) / temperature). They lie in `count` lines of side × side bins, token t in bin
t % (side · side): so sums of bins are sums of whole lines, as fast as memory. A draw is an inverse CDF in the order of
the bins: first over `side` groups of bins, then over a group's bins, then over a bin's tokens.

What top_k, top_p and min_p keep is a prefix of the tokens ordered by falling score, ties by id. It is found exactly and
without sorting the vocabulary: `_floor` is a score below which no kept token can be, and what lies above it
is sorted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

# The smallest temperature that is divided by; all below it mean the same: only the largest score counts.
_LEAST_TEMPERATURE = 1e-30
# Sums of bins are float32; a bound that must hold leaves them this much.
_ROUNDING = 1e-5
_BLOCK = 256


@dataclass(frozen=True)
class Bins:
    """How a vocabulary of `size` lies in bins: `count` lines of `side` × `side`, the last filled up with nothing."""

    size: int
    side: int
    count: int

    @classmethod
    def of(cls, size: int) -> Bins:
        """At least 4 × 4 bins, at most 64 × 64, and of large vocabularies at least four tokens a bin."""
        side = 1 << min(6, max(2, ((size // 4).bit_length() - 1) // 2))
        return cls(size, side, -(-size // (side * side)))

    @property
    def line(self) -> int:
        """Bins, and tokens in a line."""
        return self.side * self.side

    def empty(self, rows: int, fill: float) -> Float32:
        """float32 [rows, count · line] to work in, of which the first `size` columns are used."""
        return np.full((rows, self.count * self.line), fill, np.float32)


def scaled(scores: Float32, largest: Float32, temperatures: Float32, out: Float32) -> Float32:
    """(score - largest) / temperature into `out`. scores, out: [r, n]; largest, temperatures: [r]."""
    np.subtract(scores, largest[:, None], out=out)
    # No temperature, however small, overflows upwards, since nothing is above 0.
    if temperatures.max() != 1.0 or temperatures.min() != 1.0:
        with np.errstate(over="ignore"):
            np.divide(out, temperatures[:, None], out=out)
    return out


def usable(temperature: float) -> float:
    """A temperature above 0 as float32 can divide by it."""
    return max(temperature, _LEAST_TEMPERATURE)


def sums_of_bins(scores: Float32, largest: Float32, temperatures: Float32, bins: Bins, work: Float32) -> Float32:
    """float32 [r, line], the weight of each bin. scores: [r, size]; work: `bins.empty` of at least r rows, of zeros."""
    rows = len(scores)
    weights = scaled(scores, largest, temperatures, work[:rows, : bins.size])
    np.exp(weights, out=weights)
    sums: Float32 = np.add.reduce(work[:rows].reshape(rows, bins.count, bins.line), axis=1)
    return sums


def total_of(sums: Float32) -> float:
    """The weight of a row's bins [line] together."""
    return float(np.add.reduce(sums, dtype=np.float64))


def draw_from_bins(
    scores: Float32, rows: Int64, largest: Float32, temperatures: Float32, sums: Float32, draws: Float64, bins: Bins
) -> Int64:
    """int64 [n], a token for each of `rows` (indices into scores [R, size]), of the whole vocabulary. largest,
    temperatures, draws: [n]; sums: [n, line] from `sums_of_bins`."""
    side, number = bins.side, np.arange(len(rows))
    by_group = sums.reshape(-1, side, side).astype(np.float64)
    group, within = _pick(np.add.reduce(by_group, axis=2), draws)
    bin_in_group, within = _pick(by_group[number, group], within)
    first = group * side + bin_in_group
    tokens = first[:, None] + np.arange(bins.count) * bins.line  # [n, count]
    beyond = tokens >= bins.size
    own = scores[rows[:, None], np.minimum(tokens, bins.size - 1)]
    weights = np.exp(scaled(own, largest, temperatures, np.empty_like(own)))
    weights[beyond] = 0.0
    place, _ = _pick(weights.astype(np.float64), within)
    chosen: Int64 = tokens[number, place]
    return chosen


def _pick(weights: Float64, draws: Float64) -> tuple[Int64, Float64]:
    """By inverse CDF, one place a row of weights [n, m], never one of weight 0, and where in [0, 1] of that place's
    part of the CDF the draw fell, which is as random as the draw was."""
    number = np.arange(len(weights))
    cumulative = np.cumsum(weights, axis=1)
    totals = cumulative[:, -1]
    # Below the total even where rounding says otherwise: so what is found has weight.
    targets = np.minimum(draws * totals, np.nextafter(totals, 0.0))
    place: Int64 = np.add.reduce(cumulative <= targets[:, None], axis=1, dtype=np.int64)
    own = weights[number, place]
    share: Float64 = np.maximum((targets - (cumulative[number, place] - own)) / own, 0.0)
    return place, share


@dataclass(frozen=True)
class Truncation:
    """top_k ≥ 1 or 0 for none; top_p in (0, 1]; min_p in [0, 1]. top_p counts what top_k left, without top_k the
    whole vocabulary; min_p is relative to the likeliest token."""

    top_k: int
    top_p: float
    min_p: float

    @property
    def keeps_all(self) -> bool:
        return self.top_k <= 0 and self.top_p >= 1.0 and self.min_p <= 0.0

    @property
    def needs_total(self) -> bool:
        """Whether the weight of the whole vocabulary decides."""
        return self.top_k <= 0 and self.top_p < 1.0


def draw_truncated(
    scores: Float32, largest: float, temperature: float, truncation: Truncation, total: float, draw: float, bins: Bins
) -> int:
    """One of the tokens that `truncation` keeps of scores [size]. total: of the row's weights, if that is needed."""
    floor = _floor(scores, largest, temperature, truncation, total, bins)
    tokens = np.flatnonzero(scores >= np.float32(floor))
    own = scores[tokens]
    ordered = np.sort(own)[::-1]  # falling
    if truncation.top_k > 0:
        ordered = ordered[: truncation.top_k]
    keep = len(ordered)
    if truncation.top_p < 1.0 or truncation.min_p > 0.0:
        keep = _kept(_weights(ordered, largest, temperature), truncation, total)
    # The last score that is kept; of its equals those with the lowest ids.
    cut = ordered[keep - 1]
    kept = own > cut
    ties = np.flatnonzero(own == cut)
    kept[ties[: keep - np.count_nonzero(kept)]] = True
    places = np.flatnonzero(kept)
    blocks = _in_blocks(_weights(own[places], largest, temperature))
    block, within = _pick(np.add.reduce(blocks, axis=1)[None], np.array([draw]))
    place, _ = _pick(blocks[block], within)
    return int(tokens[places[block[0] * _BLOCK + place[0]]])


def _in_blocks(weights: Float64) -> Float64:
    """[n] → [blocks, _BLOCK], zeros at the end. Running sums over many thousand tokens are slow: blocks first, then one
    block."""
    blocks = np.zeros((-(-len(weights) // _BLOCK), _BLOCK))
    blocks.reshape(-1)[: len(weights)] = weights
    return blocks


def _first_to_reach(weights: Float64, reach: float) -> int:
    """The first index of weights [n] whose running sum is at least `reach`; n if none is."""
    blocks = _in_blocks(weights)
    cumulative = np.cumsum(np.add.reduce(blocks, axis=1))
    block = int(np.searchsorted(cumulative, reach, side="left"))
    if block == len(blocks):
        return len(weights)
    before = float(cumulative[block - 1]) if block else 0.0
    return block * _BLOCK + int(np.searchsorted(before + np.cumsum(blocks[block]), reach, side="left"))


def _weights(scores: Float32, largest: float, temperature: float) -> Float64:
    with np.errstate(over="ignore"):
        weights: Float64 = np.exp((scores.astype(np.float64) - largest) / temperature)
    return weights


def _kept(weights: Float64, truncation: Truncation, total: float) -> int:
    """How many of weights [n], falling, top_p and min_p leave: at least one."""
    keep = len(weights)
    if truncation.top_p < 1.0:
        # The shortest prefix whose probability reaches top_p.
        whole = total if truncation.needs_total else float(np.add.reduce(weights))
        keep = min(keep, _first_to_reach(weights, truncation.top_p * whole) + 1)
    if truncation.min_p > 0.0:
        keep = min(keep, max(1, int(np.count_nonzero(weights >= truncation.min_p))))
    return keep


def _floor(
    scores: Float32, largest: float, temperature: float, truncation: Truncation, total: float, bins: Bins
) -> float:
    """A score that every kept token reaches. It may be too low: what decides is done exactly on the rest."""
    floor = -math.inf
    if truncation.top_k > 0:
        floor = kth_bound(scores, truncation.top_k, bins)
    elif truncation.top_p < 1.0:
        floor = _nucleus_bound(scores, largest, temperature, truncation.top_p, total, bins)
    # With top_k, top_p counts what min_p drops.
    if truncation.min_p > 0.0 and (truncation.needs_total or truncation.top_p >= 1.0):
        floor = max(floor, _just_below(largest + temperature * (math.log(truncation.min_p) - _ROUNDING)))
    return max(floor, float(np.finfo(np.float32).min))


def largest_of_bins(scores: Float32, bins: Bins) -> Float32:
    """float32 [line], each bin's largest of scores [size]; -inf in a bin without tokens."""
    whole = scores.shape[0] // bins.line
    if not whole:
        return scores
    tops: Float32 = np.maximum.reduce(scores[: whole * bins.line].reshape(whole, bins.line), axis=0)
    rest = scores[whole * bins.line :]
    np.maximum(tops[: len(rest)], rest, out=tops[: len(rest)])
    return tops


def kth_bound(scores: Float32, k: int, bins: Bins) -> float:
    """A score that at least k tokens reach, not much below the k-th largest: the k-th of the bins' largest ones."""
    if k >= scores.shape[0]:
        return -math.inf
    tops = largest_of_bins(scores, bins) if k <= bins.line // 4 else scores
    if k > len(tops):
        tops = scores
    return float(np.partition(tops, len(tops) - k)[len(tops) - k])


def _nucleus_bound(
    scores: Float32, largest: float, temperature: float, top_p: float, total: float, bins: Bins
) -> float:
    tops = np.sort(largest_of_bins(scores, bins))[::-1]
    cumulative = np.cumsum(_weights(tops, largest, temperature))
    enough = int(np.searchsorted(cumulative, (top_p + _ROUNDING) * total))
    if enough < len(tops):
        return float(tops[enough])
    # Tokens of less weight than this have, all of them together, less than what top_p leaves out.
    least = (1.0 - top_p) * total / scores.shape[0]
    return _just_below(largest + temperature * (math.log(least) - _ROUNDING))


def _just_below(score: float) -> float:
    return float(np.nextafter(np.float32(max(score, float(np.finfo(np.float32).min))), np.float32(-np.inf)))


def likeliest(scores: Float32, count: int, bins: Bins) -> Sequence[int]:
    """The ids of the `count` largest of scores [size], the largest first, ties by id."""
    tokens = np.flatnonzero(scores >= np.float32(kth_bound(scores, count, bins)))
    order = np.argsort(-scores[tokens], kind="stable")[:count]
    found: list[int] = tokens[order].tolist()
    return found
