"""Our own native code for CPUs, by instruction set: AVX2, AVX-512, AVX-512 with bfloat16 dot products, AMX tiles.

The C sources are in node/native (kernels.h says what each is for). They are compiled when the package is installed,
if there is a C compiler; without it `available()` says False and callers use torch. What they are worth is in
docs/decisions/0002-native-kernels.md and 0010-bfloat16-arithmetic.md.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch

log = logging.getLogger(__name__)
AVX2, AVX512, BFLOAT16_PAIRS, AMX = 2, 3, 4, 5
LEVELS = {AVX2: "AVX2", AVX512: "AVX-512", BFLOAT16_PAIRS: "AVX512-BF16", AMX: "AMX"}
# The most that lp_instruction_set may report; see use_level.
_most_level = AMX


@functools.cache
def _loaded() -> tuple[ctypes.CDLL, int] | None:
    """The library and this CPU's instruction set level, or None."""
    for path in sorted(Path(__file__).parent.glob("_kernels*.so")):
        try:
            # Its parallel loops run in torch's own pool of threads: torch's OpenMP must be visible to it.
            for runtime in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
                ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
            library = ctypes.CDLL(str(path))
            declare(library)
        except (OSError, AttributeError):
            continue  # built for another machine or from other sources, or a torch without libgomp
        level = library.lp_instruction_set()
        if level:
            widened = level == BFLOAT16_PAIRS and library.lp_widens_panels(-1)
            log.info("native kernels: %s%s", LEVELS[level], ", panels widened to float32" if widened else "")
            if level < AMX and "amx_bf16" in _cpu_flags():
                log.warning(
                    "AMX tiles are not used: Linux does not permit them here, or they failed the check at start"
                )
            return library, level
    return None


def declare(library: ctypes.CDLL) -> None:
    """Give the functions of the library their types. Raises AttributeError if it is an older one."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.lp_linear.argtypes = [pointer, pointer, pointer, integer, pointer, ctypes.c_int]
    library.lp_linear_scratch.restype = integer
    library.lp_linear_scratch.argtypes = [pointer, integer, ctypes.c_int]
    library.lp_widens_panels.argtypes = [ctypes.c_int]
    library.lp_panel_bytes.restype = integer
    library.lp_panel_bytes.argtypes = [integer, integer]
    library.lp_pack_panels.restype = None
    library.lp_pack_panels.argtypes = [pointer, pointer, integer, integer, pointer, integer]
    library.lp_scratch.restype = integer
    library.lp_scratch.argtypes = [pointer, pointer, pointer, integer]
    library.lp_layers.argtypes = [pointer, pointer, pointer, pointer, pointer, integer]


def _cpu_flags() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []


def available() -> bool:
    """Whether there are kernels here: it was compiled, and the CPU has AVX2, FMA and F16C."""
    return _loaded() is not None


def library() -> tuple[ctypes.CDLL, int]:
    """The compiled library and the instruction set to pass to it. Raises RuntimeError if `available()` is False."""
    loaded = _loaded()
    if loaded is None:
        raise RuntimeError("the native kernels are not available here: ask available() first")
    return loaded[0], min(loaded[1], _most_level)


def use_level(level: int | None) -> None:
    """Use at most this instruction set (one of LEVELS); None: the CPU's own, the default. For tests and measurements.

    Weights that were packed for a higher one cannot be multiplied any more.
    """
    global _most_level
    _most_level = AMX if level is None else level
