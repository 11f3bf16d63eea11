"""The stage's one loop: receive a frame, run its tokens through this stage's layers, forward the result.

It keeps no request state: which blocks, which positions and which rows all arrive in the frame.
"""

from __future__ import annotations

import threading
import time

import torch

from languagepipes_node import metrics
from languagepipes_node.health import COMPUTING_SECONDS, WAITING_SECONDS, Watchdog
from languagepipes_node.model.buffers import bytes_of, tensor_from
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.wire.stage_communicator import StageCommunicator

_IDLE_SECONDS = 0.2


class StageLoop:
    """Runs one LayerStack behind one StageCommunicator.

    rows_only: the last stage of a replica without tail layers returns the wanted rows and nothing else. watchdog:
    notices a step that hangs.
    """

    def __init__(
        self,
        stack: LayerStack,
        communicator: StageCommunicator,
        *,
        hidden_size: int,
        dtype: torch.dtype,
        rows_only: bool,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._stack = stack
        self._communicator = communicator
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._rows_only = rows_only
        self._watchdog = watchdog or Watchdog()

    def run(self, stopping: threading.Event) -> None:
        """Until `stopping` is set. A lost link does not end it: the communicator waits for the next epoch."""
        with torch.inference_mode():
            while not stopping.is_set():
                self.step()

    def step(self) -> bool:
        """Receive, run and send one frame. False if none came within a moment."""
        self._watchdog.expect("the ring thread", WAITING_SECONDS)
        inbound = self._communicator.receive(_IDLE_SECONDS)
        if inbound is None:
            return False
        if not self._communicator.computes(inbound):
            self._communicator.forward(inbound, b"", 0)
            return True
        self._watchdog.expect("computing a frame", COMPUTING_SECONDS)
        started = time.perf_counter()
        hidden = tensor_from(
            inbound.hidden, dtype=self._dtype, width=self._hidden_size, device=self._stack.device
        )  # [tokens, hidden]
        hidden = self._stack.run(hidden, inbound.batch)
        if not self._communicator.rows_forward(inbound):
            hidden = hidden[:0]  # a replay ends here, or a chunk of which no row is wanted
        elif self._rows_only:
            rows = torch.from_numpy(inbound.batch.rows).to(hidden.device)
            hidden = hidden.index_select(0, rows)  # [rows, hidden]
        data = bytes_of(hidden)
        blocks = int(inbound.batch.runs[:, 1].sum())  # before `forward`: after it, the slot may hold the next frame
        busy_seconds = time.perf_counter() - started
        self._watchdog.expect("sending a frame", WAITING_SECONDS)
        self._communicator.forward(inbound, data, round(busy_seconds * 1e6))
        metrics.STEP.observe(busy_seconds)
        metrics.KV_BLOCKS_USED.set(blocks)
        return True
