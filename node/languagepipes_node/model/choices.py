"""Which arithmetic is fastest here for a member's weights: measured once, then remembered by the weights store.

Choices differ in the last bits of what they compute. Members that take what one of them measured start without
measuring, and answer as they did before a restart.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch
from languagepipes_api.store_answers import ArithmeticChoice, ArithmeticChoices

from languagepipes_node.model import kernels
from languagepipes_node.model.buffers import TORCH_DTYPES
from languagepipes_node.model.linear import Arithmetic, Compute, always
from languagepipes_node.model.matrix import Matrix
from languagepipes_node.model.quantised import Weight, quantised

log = logging.getLogger(__name__)

# Rows at which the pairings are compared; a step with a number of rows in between uses the decision below it.
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 128)
_REPEATS = 5
_BUDGET_SECONDS = 1.5
_HOPELESS = 3.0
_NOISE = 1.03
_MEASURED_BYTES = 64 << 20
_ARITHMETIC_ROWS = 16
# What tells processors apart in /proc/cpuinfo, on x86 and on ARM; clock rates and numbers of cores do not.
_PROCESSOR_FACTS = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "cache size"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
}


class Memory(Protocol):
    """What a pipe's members have measured, by key: `weights.remote.StoreClient`."""

    def arithmetic(self, key: str) -> ArithmeticChoices | None:
        """None if nothing is remembered under this key, or that cannot be told now."""
        ...

    def remember_arithmetic(self, key: str, choices: ArithmeticChoices) -> ArithmeticChoices | None:
        """Returns what is remembered from now on: another's if that came first. None if nothing is."""
        ...


def choose(
    memory: Memory | None, subject: Sequence[object], ways: Collection[Arithmetic], measured: Callable[[], Compute]
) -> Compute:
    """What is remembered for this machine and `subject`, if only `ways` are in it; else what `measured` says, which is
    remembered.

    subject: JSON values that say what the time of a step depends on, as the shapes and dtypes of the weights.
    """
    if memory is None:
        return measured()
    key = hashlib.sha256(json.dumps([*_machine(), *subject]).encode()).hexdigest()
    found = _taken(memory.arithmetic(key), ways)
    if found is None:
        own = measured()
        found = _taken(memory.remember_arithmetic(key, _to_wire(own)), ways) or own
    return found


def _machine() -> list[object]:
    """What else choices depend on: processor, kernels, threads, and the versions of what computes."""
    level = kernels.library()[1] if kernels.available() else 0
    return [_processor(), level, torch.get_num_threads(), torch.__version__, version("languagepipes")]


@functools.cache
def _processor() -> list[str]:
    """The lines of /proc/cpuinfo that all processors of a kind have in common; none where there is no such file."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return []
    return [line for line in first.splitlines() if line.partition(":")[0].strip() in _PROCESSOR_FACTS]


def _to_wire(compute: Compute) -> ArithmeticChoices:
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    return ArithmeticChoices(
        choices=tuple(
            ArithmeticChoice.model_validate(
                {"rows": rows, "dtype": names[way.dtype], "native": way.native, "whole": way.whole}
            )
            for rows, way in compute.choices
        )
    )


def _taken(remembered: ArithmeticChoices | None, ways: Collection[Arithmetic]) -> Compute | None:
    """None as well for what is not one of `ways`: it was another member's, and what it says is not obeyed blindly."""
    if remembered is None:
        return None
    choices = tuple(
        (each.rows, Arithmetic(TORCH_DTYPES[each.dtype], native=each.native, whole=each.whole))
        for each in remembered.choices
    )
    if not all(way in ways for _, way in choices):
        log.warning("the arithmetic that the weights store remembers is none of this member's: it is measured again")
        return None
    return Compute(choices)


def candidates(storage: torch.dtype, *, quantised: bool = False) -> list[Arithmetic]:
    """Every way to multiply by weights of this dtype on this CPU; torch's own kernel for the dtype comes first.

    quantised: the weights are, and are widened to the dtype of the arithmetic.
    """
    ways = [Arithmetic(storage)]
    if storage != torch.float32:
        ways.append(Arithmetic(torch.float32))
    if kernels.available() and not quantised:
        ways.append(Arithmetic(torch.float32, native=True))
    return ways


def measure(
    layers: Sequence[Sequence[Weight]], dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> Compute:
    """Time every way on the weights of these layers (or of the head alone) and keep the fastest for each bucket.

    A few rows read enough layers for the weights to come from memory and not from a cache, as in a real step; more
    rows are bound by arithmetic, and one layer says it all. Takes at most about two seconds. On a GPU there is nothing
    to choose. dtype: of the weights that are not quantised.
    """
    if any(not isinstance(each, Matrix) and each.device.type != "cpu" for each in layers[0]):
        return always(Arithmetic(dtype))
    one = list(layers[0])
    several: list[Weight] = []
    for weights in layers:
        several.extend(weights)
        if sum(weight.nbytes for weight in several) > _MEASURED_BYTES:
            break
    ways = candidates(dtype, quantised=any(quantised(weights) for weights in layers))
    started = clock()
    choices: list[tuple[int, Arithmetic]] = []
    for rows in ROW_BUCKETS:
        if choices and clock() - started > _BUDGET_SECONDS:
            break  # the last decision stands for more rows
        seconds = _seconds(several if rows < _ARITHMETIC_ROWS else one, rows, ways, clock)
        best = min(seconds.values())
        # The first that is as good as any: a lead within the noise changes nothing.
        chosen = next(way for way in ways if seconds[way] <= best * _NOISE)
        if not choices or choices[-1][1] != chosen:
            choices.append((rows, chosen))
        # What is this much slower is not faster at more rows either: all three read the same weights.
        ways = [way for way in ways if seconds[way] < best * _HOPELESS]
    return Compute(tuple(choices))


def _seconds(
    weights: Sequence[Weight], rows: int, ways: Sequence[Arithmetic], clock: Callable[[], float]
) -> dict[Arithmetic, float]:
    """The seconds that all products take, each way."""

    def products(way: Arithmetic, inputs: Sequence[torch.Tensor]) -> None:
        for x, weight in zip(inputs, weights, strict=True):
            way.product(x, weight, None)

    acts = [
        partial(products, way, [torch.full((rows, weight.shape[1]), 0.01, dtype=way.dtype) for weight in weights])
        for way in ways
    ]
    return dict(zip(ways, seconds_of(acts, clock), strict=True))


def seconds_of(acts: Sequence[Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """The least of a few timings of each, in turn (noise only adds, and comes in bursts); of two if they are long."""
    best = [float("inf")] * len(acts)
    for attempt in range(_REPEATS):
        begin = clock()
        for index, act in enumerate(acts):
            start = clock()
            act()
            best[index] = min(best[index], clock() - start)
        if attempt and clock() - begin > _BUDGET_SECONDS / 10:
            break
    return best
