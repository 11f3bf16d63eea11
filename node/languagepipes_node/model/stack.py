"""One contiguous range of decoder layers with the KV cache they write: what a stage is, without sockets."""

from __future__ import annotations

from collections.abc import Callable

import torch

from languagepipes_api.plan import LayerRange
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.batch import Batch
from languagepipes_node.weights.source import TensorSource


class LayerStack:
    """Layers `[start, stop)`.

    dtype: of the hidden states handed over and back, of the KV cache and of the weights at rest. The dtype of the
    arithmetic is this station's own choice. blocks × block_tokens token slots are allocated for every layer.
    """

    def __init__(
        self,
        architecture: Architecture,
        layers: LayerRange,
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
        """Allocate weights and KV cache, and read this range's tensors and no other byte.

        progress(total bytes read so far) is called after each tensor. Raises WrongWeights, OutOfMemory, or WeightsError
        of the source.
        """
        raise NotImplementedError

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """hidden: [tokens, hidden] in `dtype` on `device`; it may be overwritten. Returns the same shape and dtype.

        The keys and values of the batch's tokens are written to the slots that the batch names; running the same
        batch again writes the same. Raises BatchError.
        """
        raise NotImplementedError
