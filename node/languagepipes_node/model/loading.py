"""From a TensorSource into packed weights: every tensor checked, then its bytes read straight to where they stay.

Where the stored dtype is the planned one and the device is a CPU, the source writes into the packed weight itself. In
every other case it goes through a temporary of at most 16 MiB (or one row), some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from languagepipes_node.model.buffers import TORCH_DTYPES
from languagepipes_node.model.errors import OutOfMemory, WrongWeights
from languagepipes_node.model.names import Part, target_shapes
from languagepipes_node.weights.source import TensorSource

_TEMPORARY_BYTES = 16 << 20


def bytes_needed(parts: Iterable[Part], dtype: torch.dtype) -> int:
    """Resident bytes of `parts` in `dtype`."""
    return sum(math.prod(part.shape) for part in parts) * dtype.itemsize


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, purpose: str) -> torch.Tensor:
    """Uninitialised memory. Raises OutOfMemory naming `purpose` and the bytes."""
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a bare one
        size = math.prod(shape) * dtype.itemsize
        raise OutOfMemory(
            f"{purpose}: {size} bytes cannot be allocated on {device}: give the member more memory or fewer layers"
        ) from error


def allocate_targets(
    parts: tuple[Part, ...], dtype: torch.dtype, device: torch.device, purpose: str
) -> dict[str, torch.Tensor]:
    """One tensor for each packed weight of `parts`. Raises OutOfMemory."""
    return {
        target: allocate(shape, dtype, device, f"{purpose} {target}") for target, shape in target_shapes(parts).items()
    }


def check(source: TensorSource, parts: Iterable[Part]) -> None:
    """Compare every part with what the source has, before any byte is read. Raises WrongWeights."""
    for part in parts:
        try:
            info = source.info(part.name)
        except KeyError as error:
            raise WrongWeights(f"tensor {part.name}: missing from the weights, but config.json calls for it") from error
        if info.dtype not in TORCH_DTYPES:
            raise WrongWeights(f"tensor {part.name}: stored as {info.dtype}; supported are {', '.join(TORCH_DTYPES)}")
        if tuple(info.shape) != part.shape:
            raise WrongWeights(
                f"tensor {part.name}: shape {list(info.shape)}, but config.json makes it {list(part.shape)}"
            )
        expected = math.prod(part.shape) * TORCH_DTYPES[info.dtype].itemsize
        if info.nbytes != expected:
            raise WrongWeights(
                f"tensor {part.name}: {info.nbytes} bytes, but shape and dtype make {expected}: the file is damaged"
            )


def fill(
    source: TensorSource,
    parts: Iterable[Part],
    targets: dict[str, torch.Tensor],
    progress: Callable[[int], None],
    done: int = 0,
) -> int:
    """Read every part to its place. progress gets `done` plus the resident bytes filled so far; that sum is returned.

    Raises WrongWeights, or WeightsError of the source.
    """
    for part in parts:
        place = targets[part.target][part.start : part.start + part.shape[0]]
        read_tensor(source, part.name, place)
        done += place.numel() * place.element_size()
        progress(done)
    return done


def read_tensor(source: TensorSource, name: str, place: torch.Tensor) -> None:
    """Read one checked tensor into the contiguous `place`, converting to its dtype and device if they differ."""
    stored = TORCH_DTYPES[source.info(name).dtype]
    if place.device.type == "cpu" and stored == place.dtype:
        source.read_into(name, _bytes(place))
        return
    height = max(1, min(place.shape[0], _TEMPORARY_BYTES * place.shape[0] // (place.numel() * stored.itemsize)))
    temporary = torch.empty((height, *place.shape[1:]), dtype=stored)
    for first in range(0, place.shape[0], height):
        rows = min(height, place.shape[0] - first)
        source.read_rows_into(name, first, rows, _bytes(temporary[:rows]))
        converted = place[first : first + rows].copy_(temporary[:rows])
        if place.dtype == torch.float16 != stored and not bool(torch.isfinite(converted).all()):
            raise WrongWeights(f"tensor {name}: a value is beyond float16's range: use bfloat16 or float32")


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
