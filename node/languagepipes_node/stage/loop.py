"""The stage's one loop: receive a frame, run its tokens through this stage's layers, forward the result.

It keeps no request state: which blocks, which positions and which rows all arrive in the frame. A frame that cannot be
computed ends the epoch, not the process: weights and KV stay, and the End Model decides what is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from languagepipes_node import metrics
from languagepipes_node.health import COMPUTING_SECONDS, WAITING_SECONDS, Watchdog
from languagepipes_node.model.buffers import bytes_of, tensor_from
from languagepipes_node.model.errors import DeviceFailed, ModelError
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.wire.stage_communicator import Inbound, StageCommunicator

_IDLE_SECONDS = 0.2
# Of an error's message that is known to hold numbers alone.
_MESSAGE_CHARACTERS = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _StepFailure:
    """Why a step could not be computed, without the exception: its traceback keeps the step's tensors alive.

    message: for the End Model and its clients' operator; no text and no hidden state.
    """

    message: str
    place: str
    out_of_memory: bool

    @classmethod
    def of(cls, error: Exception) -> _StepFailure:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
        what = f"{type(error).__name__} at {where}"
        # Any other message may quote values of the hidden states.
        if isinstance(error, (ModelError, torch.OutOfMemoryError)):
            what += f": {' '.join(str(error).split())[:_MESSAGE_CHARACTERS]}"
        place = "".join(traceback.format_tb(error.__traceback__))
        return cls(what, place, isinstance(error, (MemoryError, torch.OutOfMemoryError)))


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
        """Until `stopping` is set. A lost link does not end it: the communicator waits for the next epoch. Nor does a
        step that cannot be computed. Raises DeviceFailed if no step could be computed any more.
        """
        with torch.inference_mode():
            while not stopping.is_set():
                self.step()

    def drain(self, until: float) -> None:
        """Accept no other epoch, and serve the present one until the End Model closes it, at most until this time of
        the monotonic clock. Returns at once if there is none. Raises DeviceFailed.
        """
        self._communicator.leave()
        with torch.inference_mode():
            while self._communicator.state.epoch is not None and time.monotonic() < until:
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
        failure: _StepFailure | None = None
        try:
            self._serve(inbound)
        except Exception as error:  # whatever a layer raises; of what it may quote, nothing is shown
            failure = _StepFailure.of(error)
        if failure is not None:
            self._fail(inbound, failure)
        return True

    def _serve(self, inbound: Inbound) -> None:
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

    def _fail(self, inbound: Inbound, failure: _StepFailure) -> None:
        log.error("step %d failed: %s\n%s", inbound.step, failure.message, failure.place)
        self._communicator.fail(inbound, f"step {inbound.step} failed: {failure.message}")
        if self._stack.device.type != "cuda":
            return
        try:
            if failure.out_of_memory:
                torch.cuda.empty_cache()
            torch.cuda.synchronize(self._stack.device)
        except RuntimeError as error:
            raise DeviceFailed(f"the GPU takes no more work after {failure.message}") from error
