"""A quantised matrix in memory, and what else may stand where a weight does.

The two kinds and their bytes are those of `weights.quantised`: Q8 and Q4, with float16 scales (and minimums) a group of
values along the depth. A packed weight whose parts are of different kinds (a GGUF file's q and k in one type, v in
another) is a stack of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from languagepipes_node.model.matrix import Matrix


@dataclass(frozen=True)
class QuantisedWeight:
    """A matrix [rows, depth]. values: int8 [rows, depth], or uint8 [rows, depth / 2] with two values a byte; scales
    and, with uint8, minimums: float16 [rows, groups]. All contiguous and on one device.
    """

    values: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor | None = None

    @property
    def bits(self) -> int:
        return 8 if self.values.dtype == torch.int8 else 4

    @property
    def group(self) -> int:
        """Values along the depth that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1] * 8 // self.bits

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.values, self.scales) if self.minimums is None else (self.values, self.scales, self.minimums)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def device(self) -> torch.device:
        return self.values.device

    def rows(self, start: int, stop: int) -> QuantisedWeight:
        """A view of rows `[start, stop)`."""
        return QuantisedWeight(*(tensor[start:stop] for tensor in self.tensors))

    def picked(self, ids: torch.Tensor) -> QuantisedWeight:
        """A copy of the rows of these ids, int64 [n]."""
        return QuantisedWeight(*(tensor.index_select(0, ids) for tensor in self.tensors))

    def widened(self, dtype: torch.dtype) -> torch.Tensor:
        """[rows, depth] of what the values stand for: computed in float32, rounded to dtype."""
        rows, groups = self.scales.shape
        scales = self.scales.float().unsqueeze(2)
        if self.minimums is None:
            whole = self.values.view(rows, groups, -1).float().mul_(scales)
        else:
            packed = self.values.view(rows, groups, -1)
            whole = torch.cat((packed & 15, packed >> 4), dim=2).float().mul_(scales)
            whole.add_(self.minimums.float().unsqueeze(2))
        return whole.view(rows, -1).to(dtype)


@dataclass(frozen=True)
class StackedWeight:
    """Matrices of one depth, one under the other."""

    segments: tuple[torch.Tensor | QuantisedWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(segment.shape[0] for segment in self.segments), self.segments[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    @property
    def device(self) -> torch.device:
        return self.segments[0].device

    def rows(self, start: int, stop: int) -> Weight:
        """A view of rows `[start, stop)`: one segment's if it has them all."""
        found: list[torch.Tensor | QuantisedWeight] = []
        for segment in self.segments:
            height = segment.shape[0]
            if start < height and stop > 0:
                first, last = max(0, start), min(height, stop)
                found.append(segment[first:last] if isinstance(segment, torch.Tensor) else segment.rows(first, last))
            start, stop = start - height, stop - height
        return found[0] if len(found) == 1 else StackedWeight(tuple(found))


# A Matrix: what the native kernels multiply by, once packed for them.
Weight = torch.Tensor | QuantisedWeight | StackedWeight | Matrix


def rows_of(weight: Weight, start: int, stop: int) -> Weight:
    """A view of rows `[start, stop)`; of a packed matrix, whole panels."""
    if isinstance(weight, torch.Tensor):
        return weight[start:stop]
    return weight.outputs(start, stop) if isinstance(weight, Matrix) else weight.rows(start, stop)


def quantised(weights: Sequence[Weight]) -> bool:
    """Whether any of them is."""
    return any(not isinstance(weight, torch.Tensor) for weight in weights)


def look_up(table: Weight, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows of an embedding, [len(ids), depth]: of a quantised one, those asked for are widened to dtype."""
    if isinstance(table, torch.Tensor):
        return F.embedding(ids, table)
    if not isinstance(table, QuantisedWeight):
        raise TypeError(f"rows of a {type(table).__name__} are not looked up")
    return table.picked(ids).widened(dtype)


def plain(weight: Weight) -> torch.Tensor:
    """A weight that is never quantised: a norm or a bias."""
    if not isinstance(weight, torch.Tensor):
        raise TypeError("norms and biases are not quantised")
    return weight
