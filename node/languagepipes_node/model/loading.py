"""From a TensorSource into packed weights: every tensor checked, then its bytes read straight to where they stay.

Where the stored dtype is the planned one and the device is a CPU, the source writes into the packed weight itself. In
every other case it goes through a temporary of at most 16 MiB (or one row), some rows at a time. A matrix that the
source has quantised stays so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from languagepipes_node.model.buffers import TORCH_DTYPES
from languagepipes_node.model.errors import OutOfMemory, WrongWeights
from languagepipes_node.model.matrix import Matrix
from languagepipes_node.model.names import Part
from languagepipes_node.model.quantised import QuantisedWeight, StackedWeight, Weight, plain
from languagepipes_node.weights.errors import UnsupportedFile
from languagepipes_node.weights.quantised import MINIMUMS, SCALES, Kind, stored_kind
from languagepipes_node.weights.source import TensorSource

_TEMPORARY_BYTES = 16 << 20
_STORED_DTYPES = {**TORCH_DTYPES, "int8": torch.int8, "uint8": torch.uint8}


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
    source: TensorSource, parts: tuple[Part, ...], dtype: torch.dtype, device: torch.device, purpose: str
) -> dict[str, Weight]:
    """One weight for each target of `parts`, which were checked: a tensor of `dtype`, or quantised as the source has
    it; a stack where parts of one target are of different kinds. Raises OutOfMemory.
    """
    segments: dict[str, list[tuple[Kind | None, tuple[int, ...]]]] = {}
    for part in parts:
        kind, own = _kind(source, part), segments.setdefault(part.target, [])
        if own and own[-1][0] == kind:
            rows, *tail = own[-1][1]
            own[-1] = (kind, (rows + part.shape[0], *tail))
        else:
            own.append((kind, part.shape))
    targets: dict[str, Weight] = {}
    for target, own in segments.items():
        held = tuple(_allocate_kind(kind, shape, dtype, device, f"{purpose} {target}") for kind, shape in own)
        targets[target] = held[0] if len(held) == 1 else StackedWeight(held)
    return targets


def _allocate_kind(
    kind: Kind | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, purpose: str
) -> torch.Tensor | QuantisedWeight:
    if kind is None:
        return allocate(shape, dtype, device, purpose)
    return QuantisedWeight(
        *(allocate(each, _STORED_DTYPES[stored], device, purpose) for stored, each in kind.tensors("", shape).values())
    )


def held_bytes(weights: Iterable[Weight]) -> int:
    """Resident bytes."""
    return sum(weight.nbytes for weight in weights)


def check(source: TensorSource, parts: Iterable[Part], *, quantised: bool = True) -> None:
    """Compare every part with what the source has, before any byte is read. quantised: whether matrices may be so.

    Raises WrongWeights.
    """
    for part in parts:
        try:
            info = source.info(part.name)
        except KeyError as error:
            raise WrongWeights(f"tensor {part.name}: missing from the weights, but config.json calls for it") from error
        kind = _kind(source, part) if quantised else None
        if kind is None and info.dtype not in TORCH_DTYPES:
            raise WrongWeights(f"tensor {part.name}: stored as {info.dtype}; supported are {', '.join(TORCH_DTYPES)}")
        shape = tuple(info.shape) if kind is None else (info.shape[0], info.shape[1] * 8 // kind.bits)
        if shape != part.shape:
            raise WrongWeights(f"tensor {part.name}: shape {list(shape)}, but config.json makes it {list(part.shape)}")
        expected = math.prod(info.shape) * _STORED_DTYPES[info.dtype].itemsize
        if info.nbytes != expected:
            raise WrongWeights(
                f"tensor {part.name}: {info.nbytes} bytes, but shape and dtype make {expected}: the file is damaged"
            )


def _kind(source: TensorSource, part: Part) -> Kind | None:
    """How the source has a matrix quantised; None if it has not. Raises WrongWeights."""
    held = {}
    for name in (part.name, part.name + SCALES, part.name + MINIMUMS):
        try:
            info = source.info(name)
        except KeyError:
            continue
        held[name] = (info.dtype, tuple(info.shape))
        if info.dtype in TORCH_DTYPES and name == part.name:
            return None
    try:
        found = stored_kind(part.name, held)
    except UnsupportedFile as error:
        raise WrongWeights(str(error)) from error
    return None if found is None else found[0]


def fill(
    source: TensorSource,
    parts: Iterable[Part],
    targets: dict[str, Weight],
    progress: Callable[[int], None],
    done: int = 0,
) -> int:
    """Read every part to its place. progress gets `done` plus the resident bytes filled so far; that sum is returned.

    Raises WrongWeights, or WeightsError of the source.
    """
    for part in parts:
        for name, place in _places(part, targets[part.target]):
            read_tensor(source, name, place)
            done += place.nbytes
        progress(done)
    return done


def _places(part: Part, target: Weight) -> list[tuple[str, torch.Tensor]]:
    """The source's tensors of a part, and where each goes."""
    start, stop = part.start, part.start + part.shape[0]
    if isinstance(target, torch.Tensor):
        return [(part.name, target[start:stop])]
    if isinstance(target, Matrix):
        raise TypeError(f"{part.target}: packed before it was read")
    own = target.rows(start, stop)  # one segment: segments begin and end where parts do
    if isinstance(own, QuantisedWeight):
        return list(zip((part.name, part.name + SCALES, part.name + MINIMUMS), own.tensors, strict=False))
    return [(part.name, plain(own))]


def read_tensor(source: TensorSource, name: str, place: torch.Tensor) -> None:
    """Read one checked tensor into the contiguous `place`, converting to its dtype and device if they differ."""
    stored = _STORED_DTYPES[source.info(name).dtype]
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
