"""Matrix products in which weights at rest and arithmetic may have different dtypes.

`project` multiplies in the dtype of its input. Where that is the weight's own, torch's kernel for it runs; where the
input is float32 and the weight is not, the weight is widened tile by tile into a small float32 buffer, so that a
member never needs a float32 copy of its weights. The kernel of `model.kernels` widens in registers instead. Which of
the three is fastest depends on the processor and on the number of rows (without AVX512-BF16, bfloat16 arithmetic is
several times slower than float32 from a few rows on; float16 is so on most): `model.choices` finds out. Where the
processor has bfloat16 dot products, native families' bfloat16 weights are not chosen for here: they are kept as panels
(`model.matrix`), and every number of rows is multiplied one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from languagepipes_node.model.matrix import Matrix, multiply, row_major
from languagepipes_node.model.quantised import QuantisedWeight, StackedWeight, Weight

# Elements of the float32 buffer (4 MiB): large enough to hide the calls, small enough for a shared cache.
_TILE_ELEMENTS = 1 << 20


def project(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x: [rows, in]; weight: [out, in]; bias: [out] or None. Returns [rows, out] in x's dtype."""
    if isinstance(weight, Matrix):
        raise TypeError("packed weights are multiplied by project_natively")
    if not isinstance(weight, torch.Tensor):
        out = _project_quantised(x, weight)
        return out if bias is None else out.add_(bias)
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


def _project_quantised(x: torch.Tensor, weight: QuantisedWeight | StackedWeight) -> torch.Tensor:
    """Some rows of the weight at a time are widened to x's dtype."""
    if isinstance(weight, StackedWeight):
        return torch.cat([project(x, segment) for segment in weight.segments], dim=1)
    outputs, depth = weight.shape
    height = max(1, _TILE_ELEMENTS // depth)
    if outputs <= height:
        return F.linear(x, weight.widened(x.dtype))
    out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device)
    for start in range(0, outputs, height):
        stop = min(start + height, outputs)
        torch.mm(x, weight.rows(start, stop).widened(x.dtype).t(), out=out[:, start:stop])
    return out


def project_natively(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `project`, by this package's own kernel (model.kernels): x is float32, the weight of any dtype."""
    if isinstance(weight, Matrix):
        out = multiply(x, weight)
    elif isinstance(weight, torch.Tensor):
        out = multiply(x, row_major(weight))
    else:
        out = _project_quantised(x, weight)
    return out if bias is None else out.add_(bias)


Product = Callable[[torch.Tensor, Weight, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Arithmetic:
    """How a member computes: the dtype of its activations, and by which kernel it multiplies.

    whole: all layers of a step in one native call (`model.whole_step`), where the architecture allows it.
    """

    dtype: torch.dtype
    native: bool = False
    whole: bool = False

    @property
    def product(self) -> Product:
        return project_natively if self.native else project

    def __str__(self) -> str:
        if self.whole:
            return "whole native steps"
        return str(self.dtype).removeprefix("torch.") + (" by the native kernel" if self.native else "")


WHOLE = Arithmetic(torch.float32, native=True, whole=True)


@dataclass(frozen=True)
class Compute:
    """A member's arithmetic by number of rows: (from so many rows on, how), ascending from 1."""

    choices: tuple[tuple[int, Arithmetic], ...]

    def for_rows(self, rows: int) -> Arithmetic:
        chosen = self.choices[0][1]
        for least, arithmetic in self.choices:
            if rows < least:
                break
            chosen = arithmetic
        return chosen

    def whole_below(self, rows: int) -> Compute:
        """The same, but for steps of fewer than `rows` rows, which take the whole native step."""
        if rows <= 1:
            return self
        later = tuple(choice for choice in self.choices if choice[0] > rows)
        return Compute(((1, WHOLE), (rows, self.for_rows(rows)), *later))

    def __str__(self) -> str:
        return ", ".join(f"{arithmetic} from {rows} rows" for rows, arithmetic in self.choices)


def always(arithmetic: Arithmetic) -> Compute:
    """The same whatever the number of rows."""
    return Compute(((1, arithmetic),))
