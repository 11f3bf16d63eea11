"""Our own native code for CPUs: float32 arithmetic on weights of any dtype at rest.

The C source is node/native/kernels.c. It is compiled when the package is installed, if there is a C compiler; without
it `available()` says False and callers use torch. What it is worth is in docs/decisions/0002-native-kernels.md.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

# The most that lp_instruction_set may report; see use_level.
_most_level = 3
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.cache
def _library() -> tuple[ctypes.CDLL, int] | None:
    """The library and this CPU's instruction set level, or None."""
    for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
        try:
            # Its parallel loops run in torch's own pool of threads: torch's OpenMP must be visible to it.
            for runtime in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
                ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
            library = ctypes.CDLL(str(path))
        except OSError:
            continue  # built for another machine, or a torch without libgomp
        library.lp_linear.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3 + [ctypes.c_int] * 2
        library.lp_scratch.restype = ctypes.c_int64
        library.lp_scratch.argtypes = [ctypes.c_void_p] + [ctypes.c_int64] * 3
        library.lp_layers.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64]
        level = min(library.lp_instruction_set(), _most_level)
        if level:
            return library, level
    return None


def available() -> bool:
    """Whether `linear` works here: it was compiled, and the CPU has AVX2, FMA and F16C."""
    return _library() is not None


def library() -> tuple[ctypes.CDLL, int]:
    """The compiled library and the instruction set to pass to it. Raises RuntimeError if `available()` is False."""
    loaded = _library()
    if loaded is None:
        raise RuntimeError("the native kernels are not available here: ask available() first")
    return loaded


def use_level(level: int) -> None:
    """Use at most this instruction set: 2 is AVX2, 3 AVX-512. For measurements; the CPU's own is the default."""
    global _most_level
    _most_level = level
    _library.cache_clear()


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x float32 [rows, depth] × weight [width, depth] (float32, bfloat16 or float16) → float32 [rows, width].

    Both contiguous and on the CPU. Sums in float32. Raises RuntimeError if `available()` is False, ValueError for
    shapes, dtypes or layouts that it does not take.
    """
    native, level = library()
    rows, depth = x.shape
    width = weight.shape[0]
    code = DTYPE_CODES.get(weight.dtype)
    if (
        code is None
        or x.dtype is not torch.float32
        or weight.shape[1] != depth
        or not (x.is_contiguous() and weight.is_contiguous() and x.is_cpu and weight.is_cpu)
    ):
        raise ValueError(f"cannot multiply {x.dtype} {tuple(x.shape)} by {weight.dtype} {tuple(weight.shape)}")
    y = torch.empty(rows, width)
    native.lp_linear(y.data_ptr(), x.data_ptr(), weight.data_ptr(), rows, width, depth, code, level)
    return y
