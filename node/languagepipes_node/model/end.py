"""What only the End Model computes: embedding, its own first and last layers, final norm and LM head."""

from __future__ import annotations

from collections.abc import Callable

import torch

from languagepipes_api.plan import LayerRange
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.batch import Batch
from languagepipes_node.weights.source import TensorSource


class EndLayers:
    """Embedding, layers `local` (from 0) in front, layers `tail` (to the last) at the back, norm and head."""

    def __init__(
        self,
        architecture: Architecture,
        local: LayerRange,
        tail: LayerRange,
        *,
        dtype: torch.dtype,
        device: torch.device,
        block_tokens: int,
        blocks: int,
    ) -> None:
        """Allocates nothing. Raises UnsupportedModel or ValueError."""
        raise NotImplementedError

    device: torch.device
    weight_bytes: int

    def load(self, source: TensorSource, progress: Callable[[int], None]) -> None:
        """As LayerStack.load. A tied embedding is read and kept once."""
        raise NotImplementedError

    def front(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """tokens: int64 [tokens]. Returns the hidden states for stage 1, [tokens, hidden] in `dtype`."""
        raise NotImplementedError

    def back(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What came home → the wanted rows [R, hidden] in `dtype`, before the final norm.

        With tail layers `hidden` holds all tokens; without, it is the R rows already.
        """
        raise NotImplementedError

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [R, hidden]. Returns float32 [R, vocabulary]."""
        raise NotImplementedError
