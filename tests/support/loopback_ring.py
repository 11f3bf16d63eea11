"""A ring inside one process: the interface of `EndModelCommunicator` over given layer stacks, for tests and figures.

Each stack is a member with a thread of its own and a first-in-first-out queue, so several frames can be in
flight; `threads=False` computes at once inside `send`, which makes runs exactly repeatable. Hidden states
pass as raw bytes, as on the wire."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from languagepipes_node.end_model.interfaces import LayersPort
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.buffers import bytes_of, tensor_from
from languagepipes_node.wire.errors import RingDown
from languagepipes_node.wire.ring import Epoch


@dataclass(frozen=True)
class LoopbackInfo:
    """What `connect` returns."""

    epoch: Epoch
    kv_ids: tuple[bytes, ...]


@dataclass
class LoopbackFrame:
    """A frame in flight, and then returned."""

    step: int
    epoch: int
    batch: Batch
    hidden: memoryview
    tokens: int
    last_member: int
    busy_microseconds: list[int] = field(default_factory=list)
    released: bool = False

    def release(self) -> None:
        """The slot may be used again: its bytes are wiped, so that a late reader shows."""
        self.released = True
        self.hidden[:] = bytes(len(self.hidden))


class LoopbackRing:
    """Members in this process. tail_layers: the last member returns all tokens and not the wanted rows
    only.

    alter: called with each frame that returns, to damage or to hold it back (tests).
    """

    def __init__(
        self,
        stacks: Sequence[LayersPort],
        *,
        hidden_size: int,
        dtype: torch.dtype,
        tail_layers: bool = False,
        threads: bool = True,
        alter: Callable[[LoopbackFrame], LoopbackFrame | None] | None = None,
    ) -> None:
        self._stacks = list(stacks)
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._tail_layers = tail_layers
        self._alter = alter
        self._lost: RingDown | None = RingDown("the ring has not been joined yet", "lost")
        self._refused: str | None = None
        self._epoch = 0
        self._returned: queue.Queue[LoopbackFrame | RingDown] = queue.Queue()
        self._inboxes: list[queue.SimpleQueue[LoopbackFrame | None]] = []
        self._threads: list[threading.Thread] = []
        self.frames_sent = 0
        self._kv_ids = [bytes(8)] * len(self._stacks)
        if threads:
            self._inboxes = [queue.SimpleQueue() for _ in self._stacks]
            self._threads = [
                threading.Thread(target=self._member, args=(index,), name=f"loopback-{index}", daemon=True)
                for index in range(len(self._stacks))
            ]
            for thread in self._threads:
                thread.start()

    def connect(self) -> LoopbackInfo:
        """A new epoch; frames of older ones are dropped. Raises RingDown while `break_ring(stay_down=True)`
        holds."""
        if self._refused is not None:
            raise RingDown(self._refused, "unreachable")
        self._epoch += 1
        self._returned = queue.Queue()
        self._lost = None
        return LoopbackInfo(Epoch(self._epoch, b"loopback"), tuple(self._kv_ids))

    def replace_stage(self, place: int, stack: LayersPort) -> None:
        """Another process stands in place `place`, from 1: it has an empty KV cache. Only while the ring is broken."""
        self._stacks[place - 1] = stack
        self._kv_ids[place - 1] = os.urandom(8)

    def send(self, step: int, batch: Batch, hidden: memoryview, tokens: int, *, last_member: int | None = None) -> None:
        """Raises RingDown."""
        if self._lost is not None:
            raise self._lost
        expected = tokens * self._hidden_size * self._dtype.itemsize
        if len(hidden) != expected or tokens != batch.tokens:
            raise ValueError(f"frame of {tokens} tokens: {len(hidden)} bytes given, {expected} needed")
        self.frames_sent += 1
        frame = LoopbackFrame(
            step, self._epoch, batch, memoryview(bytearray(hidden)), tokens, last_member or len(self._stacks)
        )
        if self._inboxes:
            self._inboxes[0].put(frame)
            return
        for index in range(len(self._stacks)):
            frame = self._compute(index, frame)
        self._arrive(frame)

    def receive(self, timeout_seconds: float) -> LoopbackFrame | None:
        """Raises RingDown once the ring is lost."""
        if self._lost is not None:
            raise self._lost
        try:
            frame = self._returned.get(timeout=timeout_seconds) if timeout_seconds > 0 else self._returned.get_nowait()
        except queue.Empty:
            return None
        if isinstance(frame, RingDown):
            raise frame
        return frame

    def drop(self, reason: str) -> None:
        """As EndModelCommunicator.drop."""
        self._lost = RingDown(reason, "deadline")
        self._returned.put(self._lost)

    def break_ring(self, reason: str, *, stay_down: bool = False) -> None:
        """What a dead member does: the epoch is over at once. `heal` ends stay_down."""
        self._refused = reason if stay_down else None
        self._lost = RingDown(reason, "lost")
        self._returned.put(self._lost)

    def heal(self) -> None:
        """`connect` succeeds again."""
        self._refused = None

    def close(self) -> None:
        """Ends the members' threads."""
        self._lost = RingDown("closed", "closed")
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join(timeout=10)

    def _member(self, index: int) -> None:
        while (frame := self._inboxes[index].get()) is not None:
            if frame.epoch != self._epoch:
                continue
            try:
                frame = self._compute(index, frame)
            except Exception as error:  # the thread's boundary: whatever a stack raises is a lost member
                self.break_ring(f"member {index + 1}: {type(error).__name__}: {error}")
                continue
            if index + 1 < len(self._inboxes):
                self._inboxes[index + 1].put(frame)
            else:
                self._arrive(frame)

    def _compute(self, index: int, frame: LoopbackFrame) -> LoopbackFrame:
        if index >= frame.last_member:
            frame.busy_microseconds.append(0)
            return frame
        started = time.perf_counter()
        stack = self._stacks[index]
        with torch.inference_mode():
            hidden = tensor_from(frame.hidden, dtype=self._dtype, width=self._hidden_size, device=stack.device)
            hidden = stack.run(hidden, frame.batch)
            if index + 1 == frame.last_member < len(self._stacks):
                hidden = hidden[:0]  # a replay returns without a tensor
            elif index + 1 == len(self._stacks) and not self._tail_layers:
                hidden = hidden[torch.from_numpy(frame.batch.rows).long().to(hidden.device)]
            frame.hidden = memoryview(bytearray(bytes_of(hidden)))
        frame.busy_microseconds.append(round((time.perf_counter() - started) * 1e6))
        return frame

    def _arrive(self, frame: LoopbackFrame) -> None:
        altered = frame if self._alter is None else self._alter(frame)
        if altered is not None and altered.epoch == self._epoch:
            self._returned.put(altered)
