"""What only the End Model computes: embedding, its own first and last layers, final norm and LM head."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from languagepipes_api.plan import LayerRange

from languagepipes_node.model import choices, loading, packed
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.errors import BatchError
from languagepipes_node.model.linear import WHOLE, Arithmetic, Compute, always
from languagepipes_node.model.matrix import Matrix, multiply, panels, panels_pay
from languagepipes_node.model.names import Part, embedding_part, head_part, norm_part
from languagepipes_node.model.quantised import QuantisedWeight, Weight, look_up, plain, quantised, rows_of
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.source import TensorSource

log = logging.getLogger(__name__)
# The head is timed on so many of its elements: enough to be read from memory and not from a cache.
_MEASURED_ELEMENTS = 24 << 20


class Ends(Protocol):
    """A family's embedding and final norm."""

    def embed(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...

    def norm(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class NativeEnds:
    """An embedding as it is, and a plain RMS norm."""

    eps: float

    def embed(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, weight)

    def norm(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(rows, (rows.shape[1],), weight, self.eps)


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
        compute: Compute | None = None,
    ) -> None:
        """Allocates nothing. compute: for tests and benchmarks; None measures at load. Raises UnsupportedModel or
        ValueError.
        """
        if local.start != 0 or (len(tail) > 0 and tail.stop != architecture.layer_count):
            raise ValueError(
                f"local layers {local} have to begin at 0 and tail layers {tail} to end at the model's last"
            )
        self.architecture = architecture
        self.dtype = dtype
        self.device = device
        self._compute = compute or always(Arithmetic(dtype))
        self._measures = compute is None
        self._local, self._tail = (
            LayerStack(
                architecture,
                LayerRange(layers.start, max(layers.start, layers.stop)),
                dtype=dtype,
                device=device,
                block_tokens=block_tokens,
                blocks=blocks,
                compute=compute,
            )
            for layers in (local, tail)
        )
        self._ends: Ends = NativeEnds(architecture.rms_norm_eps)
        if not architecture.native:
            from languagepipes_node.model.fallback import FallbackEnds  # imports transformers: seconds

            self._ends = FallbackEnds(architecture, dtype, device)
        parts = [embedding_part(architecture), norm_part(architecture)]
        if not architecture.tied_embeddings:
            parts.append(head_part(architecture))
        self._parts: tuple[Part, ...] = tuple(parts)
        self._weights: dict[str, Weight] = {}
        chosen_natively = architecture.native and (compute is None or compute == always(WHOLE))
        # The head as panels, which stand in for a tied embedding too: see NativeLayers.
        self._in_panels = chosen_natively and panels_pay(dtype, device)
        self._packs = chosen_natively and packed.packs(device)
        self._panels: Matrix | None = None

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of embedding, head (once if tied), norm and layers; 0 before they are loaded."""
        own = loading.held_bytes([*self._weights.values(), *([] if self._panels is None else [self._panels])])
        return own + self._local.weight_bytes + self._tail.weight_bytes

    @property
    def has_tail(self) -> bool:
        """Whether `back` takes the hidden states of all tokens, not of the wanted rows only."""
        return len(self._tail.layers) > 0

    def load(
        self, source: TensorSource, progress: Callable[[int], None], *, memory: choices.Memory | None = None
    ) -> int:
        """As LayerStack.load. A tied embedding is read and kept once."""
        loading.check(source, self._parts, quantised=self.architecture.native)
        weights = loading.allocate_targets(source, self._parts, self.dtype, self.device, "end model")
        done = loading.fill(source, self._parts, weights, progress)
        self._weights = weights
        head = "embedding" if self.architecture.tied_embeddings else "head"
        if self._packs and isinstance(weights[head], QuantisedWeight):
            self._panels = packed.pack(weights.pop(head))
            log.info("head: quantised, arithmetic by the native kernel")
        elif self._in_panels and isinstance(weights[head], torch.Tensor):
            self._panels = panels(plain(weights.pop(head)))
            log.info("head: arithmetic in bfloat16 by the native kernel")
        else:
            self._head = weights[head]
        if self._panels is None and self._measures and self.device.type == "cpu":
            self._compute = self._chosen(memory)
            log.info("head: arithmetic in %s", self._compute)
        done = self._local.load(source, progress, done, memory=memory)
        return self._tail.load(source, progress, done, memory=memory)

    def _chosen(self, memory: choices.Memory | None) -> Compute:
        """The arithmetic of the head."""
        head = self._head
        measured = rows_of(head, 0, min(head.shape[0], max(1, _MEASURED_ELEMENTS // head.shape[1])))
        ways = choices.candidates(self.dtype, quantised=quantised([head]))
        subject = ["head", str(self.dtype), *head.shape, head.nbytes]
        return choices.choose(memory, subject, ways, lambda: choices.measure([[measured]], self.dtype))

    def front(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """tokens: int64 [tokens], on the CPU. Returns the hidden states for stage 1, [tokens, hidden] in `dtype`.

        Raises BatchError, also for a token id that the embedding has no row for: on a GPU looking that up would end
        every later call of the process.
        """
        rows = self.architecture.vocabulary_size
        if len(tokens) and not (int(tokens.min()) >= 0 and int(tokens.max()) < rows):
            wrong = int(tokens[(tokens < 0) | (tokens >= rows)][0])
            raise BatchError(f"token id {wrong}: the embedding has rows 0 to {rows - 1}")
        with torch.inference_mode():
            if self._panels is not None and self.architecture.tied_embeddings:
                hidden = packed.look_up(self._panels, tokens, self.dtype)
            elif isinstance(embedding := self._weights["embedding"], torch.Tensor):
                hidden = self._ends.embed(tokens.to(self.device), embedding)
            else:
                hidden = look_up(embedding, tokens.to(self.device), self.dtype)
        return self._local.run(hidden, batch)

    def back(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What returned → the wanted rows [R, hidden] in `dtype`, before the final norm.

        With tail layers `hidden` holds all tokens; without, it is the R rows already. Raises BatchError.
        """
        if not self.has_tail:
            if hidden.shape[0] != batch.rows.shape[0]:
                raise BatchError(f"hidden: {hidden.shape[0]} rows returned, {batch.rows.shape[0]} were wanted")
            return hidden
        hidden = self._tail.run(hidden, batch)
        return hidden.index_select(0, torch.from_numpy(batch.rows).to(hidden.device))

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [R, hidden]. Returns float32 [R, vocabulary]."""
        with torch.inference_mode():
            if self._panels is not None:
                normed = self._ends.norm(rows.float(), plain(self._weights["norm"]).float())
                return multiply(normed, self._panels)
            arithmetic = self._compute.for_rows(rows.shape[0])
            rows = rows.to(arithmetic.dtype)
            norm = plain(self._weights["norm"]).to(rows.dtype)
            normed = self._ends.norm(rows, norm)
            return arithmetic.product(normed, self._head, None).float()
