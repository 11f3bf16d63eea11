"""Receive buffers: made once, one frame each, handed from the reading thread to the one that computes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from languagepipes_node.wire.frame import HEADER_BYTES, FrameLimits


class Slot:
    """A receive buffer for one frame of any size that the plan allows."""

    def __init__(self, pool: SlotPool, size: int) -> None:
        # Aligned, so that a tensor in it can be computed on without a copy.
        raw = np.empty(size + 64, dtype=np.uint8)
        begin = -raw.ctypes.data % 64
        self.bytes = raw[begin : begin + size]
        self.view = memoryview(self.bytes)  # type: ignore[arg-type]
        values = (size - HEADER_BYTES) // 4
        self.ints: npt.NDArray[np.int32] = self.bytes[HEADER_BYTES : HEADER_BYTES + 4 * values].view("<i4")
        self._pool = pool

    def release(self) -> None:
        self._pool.put(self)


class SlotPool:
    """Receive buffers, made once. One more than frames may be in flight, since the frame that is being forwarded
    holds its slot while the ring may be full. So, in a ring that keeps its limits, a receiver always finds a slot
    and never stops reading.
    """

    def __init__(self, limits: FrameLimits) -> None:
        self.count = limits.frames_in_flight + 1
        # list.append and list.pop are atomic; no lock on the hot path.
        self._free = [Slot(self, limits.max_frame_bytes) for _ in range(self.count)]

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> Slot | None:
        try:
            return self._free.pop()
        except IndexError:
            return None

    def put(self, slot: Slot) -> None:
        self._free.append(slot)
