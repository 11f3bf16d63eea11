"""What the engine needs of its two neighbours, the End Model's layers and the ring, as it sees them."""

from __future__ import annotations

from typing import Protocol

import torch

from languagepipes_node.model.batch import Batch
from languagepipes_node.wire.ring import Epoch


class EndLayersPort(Protocol):
    """`model.end.EndLayers`: embedding, own layers, norm and head."""

    @property
    def device(self) -> torch.device: ...

    def front(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """int64 [tokens] → [tokens, hidden]. Raises ModelError for a batch or token ids that it does not take."""
        ...

    def back(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What returned → [R, hidden]."""
        ...

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, hidden] → float32 [R, vocabulary]."""
        ...


class LayersPort(Protocol):
    """`model.stack.LayerStack`: one contiguous range of layers with its KV cache."""

    @property
    def device(self) -> torch.device: ...

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[tokens, hidden] → [tokens, hidden]; writes the batch's keys and values."""
        ...


class ReturnedPort(Protocol):
    """A frame that returned. `hidden` is valid until `release()`."""

    @property
    def step(self) -> int: ...

    @property
    def hidden(self) -> memoryview: ...

    @property
    def busy_microseconds(self) -> list[int]:
        """Compute time of each remote member, in ring order."""
        ...

    def release(self) -> None: ...


class RingInfoPort(Protocol):
    """The ring as a hello that returned describes it."""

    @property
    def epoch(self) -> Epoch: ...

    @property
    def kv_ids(self) -> tuple[bytes, ...]:
        """Of each stage in ring order: another one than in the last epoch means that this stage has lost its KV."""
        ...


class RingPort(Protocol):
    """`wire.end_model_communicator.EndModelCommunicator`. One thread uses it."""

    def connect(self) -> RingInfoPort:
        """One attempt at a new epoch; frames of older ones are dropped. Raises RingDown."""
        ...

    def send(self, step: int, batch: Batch, hidden: memoryview, tokens: int, *, last_member: int | None = None) -> None:
        """last_member: the last stage that computes, if not all do (a replay). Raises RingDown, or FrameError for what
        breaks the plan's limits."""
        ...

    def receive(self, timeout_seconds: float) -> ReturnedPort | None:
        """The next frame that returns, oldest first. Raises RingDown once the ring is lost, also if nothing is in
        flight."""
        ...

    def drop(self, reason: str) -> None:
        """End the epoch; `receive` then raises RingDown."""
        ...
