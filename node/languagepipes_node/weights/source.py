"""Where a member's tensors come from: one small interface, so that loading knows neither HTTP nor files.

Implementations: `remote.StoreClient` (ranges from the weights store over mTLS) and `directory.SafetensorsDirectory`
(files on this machine; tests and benchmarks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as stored. dtype: "float32" | "bfloat16" | "float16"; shape row-major; nbytes: raw, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class TensorSource(Protocol):
    """Reads named tensors and the small files beside them."""

    def names(self) -> Iterator[str]:
        """Every tensor's name."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Raises KeyError if the model has no such tensor."""
        ...

    def read_into(self, name: str, destination: memoryview) -> None:
        """Fill `destination` (writable, contiguous bytes, exactly `info(name).nbytes`) with the tensor's raw bytes.

        Raises WeightsError (weights.errors) if the bytes cannot be had.
        """
        ...

    def read_rows_into(self, name: str, first_row: int, rows: int, destination: memoryview) -> None:
        """As `read_into`, for rows `[first_row, first_row + rows)` of the tensor's first dimension."""
        ...

    def file(self, name: str) -> bytes:
        """A small file beside the weights (config.json, tokenizer.json, …). Raises KeyError if there is none."""
        ...
