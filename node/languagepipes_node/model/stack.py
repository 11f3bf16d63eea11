"""One contiguous range of decoder layers with the KV cache they write: what a stage is, without sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from languagepipes_api.plan import LayerRange

from languagepipes_node.model import attention, attention_plan, choices, loading, packed, step, whole_step
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.attention_plan import Sizes
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.errors import BatchError
from languagepipes_node.model.kv import KvCache
from languagepipes_node.model.layers import Attention, DecoderLayer
from languagepipes_node.model.linear import WHOLE, Arithmetic, Compute, always
from languagepipes_node.model.matrix import PANEL, Matrix, panels, panels_pay, row_major
from languagepipes_node.model.moe import each_expert
from languagepipes_node.model.names import Part, layer_parts
from languagepipes_node.model.quantised import Weight, plain, quantised
from languagepipes_node.model.rope import Rope
from languagepipes_node.model.step import Step, probe
from languagepipes_node.model.whole_step import LayerWeights, Mixture, WholeStep
from languagepipes_node.weights.source import TensorSource

log = logging.getLogger(__name__)
_MEASURING_SECONDS = 1.5


class Layers(Protocol):
    """What runs a range of layers: this package's own decoder, or transformers' (`model.fallback`)."""

    @property
    def weight_bytes(self) -> int: ...

    def load(self, source: TensorSource, progress: Callable[[int], None], done: int) -> int: ...

    def settle(self, cache: KvCache, memory: choices.Memory | None) -> None:
        """Called once, when weights and cache are there: the moment to choose the arithmetic."""
        ...

    def run(self, hidden: torch.Tensor, step: Step, cache: KvCache) -> torch.Tensor: ...


class LayerStack:
    """Layers `[start, stop)`.

    dtype: of the hidden states handed over and back, of the KV cache and of the weights at rest. The dtype of the
    arithmetic is this member's own choice. blocks × block_tokens token slots are allocated for every layer.
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
        compute: Compute | None = None,
    ) -> None:
        """Allocates nothing. compute: for tests and benchmarks; None measures at load. Raises UnsupportedModel or
        ValueError.
        """
        if not 0 <= layers.start <= layers.stop <= architecture.layer_count:
            raise ValueError(f"layers {layers}: outside the model's {architecture.layer_count} layers")
        if block_tokens < 1 or blocks < 1:
            raise ValueError(f"blocks: {blocks} of {block_tokens} tokens; both have to be at least 1")
        self.architecture = architecture
        self.layers = layers
        self.dtype = dtype
        self.device = device
        self.block_tokens = block_tokens
        self.blocks = blocks
        self._cache: KvCache | None = None
        self._layers: Layers
        if architecture.native:
            self._layers = NativeLayers(architecture, layers, dtype=dtype, device=device, compute=compute)
        else:
            from languagepipes_node.model.fallback import FallbackLayers  # imports transformers: seconds

            self._layers = FallbackLayers(architecture, layers, dtype=dtype, device=device)

    @property
    def weight_bytes(self) -> int:
        """Resident bytes of this range's weights; 0 before they are loaded."""
        return self._layers.weight_bytes

    def load(
        self,
        source: TensorSource,
        progress: Callable[[int], None],
        done: int = 0,
        *,
        memory: choices.Memory | None = None,
    ) -> int:
        """Allocate weights and KV cache, and read this range's tensors and no other byte.

        progress(`done` + resident bytes filled so far) is called after each tensor; the last sum is returned.
        memory: where it is remembered which arithmetic is fastest; without one it is measured. Raises WrongWeights,
        OutOfMemory, or WeightsError of the source.
        """
        done = self._layers.load(source, progress, done)
        self._cache = KvCache(
            layers=len(self.layers),
            kv_heads=self.architecture.kv_heads,
            head_dim=self.architecture.head_dim,
            blocks=self.blocks,
            block_tokens=self.block_tokens,
            dtype=self.dtype,
            device=self.device,
        )
        self._layers.settle(self._cache, memory)
        return done

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """hidden: [tokens, hidden] in `dtype` on `device`; it may be overwritten. Returns the same shape and dtype.

        The keys and values of the batch's tokens are written to the slots that the batch names, and the slots behind
        them in a block that a sequence enters are cleared; running the same batch again, and those that followed it,
        leaves the same cache. Raises BatchError.
        """
        if self._cache is None:
            raise RuntimeError(f"layers {self.layers}: run before load")
        if not len(self.layers):
            return hidden
        todo = step.read(batch, blocks=self.blocks, block_tokens=self.block_tokens)
        if hidden.shape != (todo.tokens, self.architecture.hidden_size):
            raise BatchError(
                f"hidden: shape {list(hidden.shape)}, but the batch makes it"
                f" {[todo.tokens, self.architecture.hidden_size]}"
            )
        with torch.inference_mode():
            for first, stop in todo.unwritten:
                self._cache.clear(first, stop)
            return self._layers.run(hidden, todo, self._cache)


class NativeLayers:
    """A range of this package's decoder layers."""

    def __init__(
        self,
        architecture: Architecture,
        layers: LayerRange,
        *,
        dtype: torch.dtype,
        device: torch.device,
        compute: Compute | None,
    ) -> None:
        self._architecture = architecture
        self._layers = layers
        self._dtype = dtype
        self._device = device
        self._compute = compute or always(Arithmetic(dtype))
        self._measures = compute is None
        self._parts = [layer_parts(architecture, layer) for layer in range(layers.start, layers.stop)]
        self._windows = architecture.sliding_windows[layers.start : layers.stop]
        self._sizes = Sizes(architecture.attention_heads, architecture.kv_heads, architecture.head_dim)
        self._scale = architecture.head_dim**-0.5
        self._decoders: list[DecoderLayer] = []
        self._held_bytes = 0
        self._served = whole_step.serves(architecture, device)
        chosen_natively = compute is None or compute == always(WHOLE)
        # With panels all steps are whole native steps: nothing else reads them, and there is nothing to measure.
        self._in_panels = self._served and panels_pay(dtype, device) and chosen_natively
        # Quantised weights are multiplied one way, whatever the number of rows.
        self._packs = packed.packs(device) and chosen_natively
        self._native: list[LayerWeights] = []
        self._whole: WholeStep | None = None
        # The matrices whose products are measured, by layer; until then.
        self._products: list[list[Weight]] = []

    @property
    def weight_bytes(self) -> int:
        return self._held_bytes

    def load(self, source: TensorSource, progress: Callable[[int], None], done: int) -> int:
        every: list[Part] = [part for parts in self._parts for part in parts]
        loading.check(source, every)
        self._rope = Rope(self._architecture.rope, self._architecture.head_dim, self._device)
        loaded: list[dict[str, Weight]] = []
        for layer, parts in enumerate(self._parts, self._layers.start):
            weights = loading.allocate_targets(source, parts, self._dtype, self._device, f"layer {layer}")
            done = loading.fill(source, parts, weights, progress, done)
            self._held_bytes += loading.held_bytes(weights.values())
            loaded.append(weights)
        if any(quantised(list(weights.values())) for weights in loaded):
            self._take_quantised(loaded)
        else:
            self._take(loaded)
        return done

    def _take(self, loaded: Sequence[dict[str, Weight]]) -> None:
        """Layers in the dtype at rest."""
        for layer, weights in enumerate(loaded, self._layers.start):
            if self._served:
                self._native.append(self._as_native(weights))
            if self._in_panels:
                continue
            self._decoders.append(DecoderLayer(self._architecture, layer, weights))
            # Experts see other numbers of rows than the step has.
            self._products.append(
                [w for name, w in weights.items() if len(w.shape) == 2 and not name.startswith("experts")]
            )
        if self._in_panels:
            self._compute = always(WHOLE)
            self._measures = False

    def _take_quantised(self, loaded: Sequence[dict[str, Weight]]) -> None:
        """Layers with quantised matrices: by the native kernels for every number of rows, in whole steps if all of it
        fits these; without the kernels each matrix is widened as it is used.
        """
        self._served = self._packs and self._served and all(map(self._fits_whole_steps, loaded))
        for layer, weights in enumerate(loaded, self._layers.start):
            if self._served:
                self._native.append(self._as_native(weights))
                continue
            taken = packed.pack_all(weights, self._architecture) if self._packs else weights
            self._decoders.append(DecoderLayer(self._architecture, layer, taken))
        if self._served or self._packs:
            self._compute = always(WHOLE if self._served else Arithmetic(torch.float32, native=True))
            self._measures = False
        else:
            self._products = [[w for w in weights.values() if len(w.shape) == 2] for weights in loaded]

    def _fits_whole_steps(self, weights: dict[str, Weight]) -> bool:
        a = self._architecture
        gates, ups, downs = self._mlp(weights)
        return (
            a.attention_heads // a.kv_heads * a.head_dim % PANEL == 0
            and gates[0].shape[0] % PANEL == 0
            and all(len({isinstance(each, torch.Tensor) for each in alike}) == 1 for alike in (gates + ups, downs))
            and all(packed.packable(each) for each in (weights["qkv"], weights["output"], *gates, *ups, *downs))
        )

    def _mlp(self, weights: dict[str, Weight]) -> tuple[list[Weight], list[Weight], list[Weight]]:
        """Gates, ups and downs of a layer: one each, or one an expert."""
        experts = self._architecture.experts
        if experts is None or "router" not in weights:
            gate_ups, downs = [weights["gate_up"]], [weights["down"]]
        else:
            gate_ups = each_expert(weights["experts_gate_up"], experts.count)
            downs = each_expert(weights["experts_down"], experts.count)
        gates, ups = zip(*map(packed.halves, gate_ups), strict=True)
        return list(gates), list(ups), downs

    def _as_native(self, weights: dict[str, Weight]) -> LayerWeights:
        """One layer's packed weights for whole steps; matrices that become panels are no longer what they were."""

        def make(weight: Weight) -> Matrix:
            if not isinstance(weight, torch.Tensor):
                return packed.pack(weight)
            return panels(weight) if self._in_panels else row_major(weight)

        gates, ups, downs = (tuple(map(make, each)) for each in self._mlp(weights))
        matrices = {name: make(weights[name]) for name in ("qkv", "output")}
        vectors = {name: plain(weight) for name, weight in weights.items() if len(weight.shape) == 1}
        experts = self._architecture.experts
        if experts is None or "router" not in weights:
            return LayerWeights(matrices | {"gate": gates[0], "up": ups[0], "down": downs[0]}, vectors)
        return LayerWeights(matrices, vectors, Mixture(experts, make(weights["router"]), gates, ups, downs))

    def settle(self, cache: KvCache, memory: choices.Memory | None) -> None:
        if not len(self._layers):
            return
        if self._served:
            self._whole = WholeStep(self._architecture, self._native, self._windows, self._rope, cache, self._dtype)
        if self._measures and self._device.type == "cpu":
            ways = choices.candidates(self._dtype, quantised=any(map(quantised, self._products)))
            if self._served:
                ways.append(WHOLE)
            self._compute = choices.choose(memory, self._subject(), ways, partial(self._measured, cache))
        self._products = []
        log.info("layers %s: arithmetic in %s", self._layers, self._compute)

    def _subject(self) -> list[object]:
        """What the time of a step of these layers depends on."""
        a = self._architecture
        weights = [[(*each.shape, each.nbytes) for each in layer] for layer in self._products]
        heads = (a.attention_heads, a.kv_heads, a.head_dim)
        experts = None if a.experts is None else (a.experts.count, a.experts.top_k, a.experts.intermediate_size)
        return ["layers", str(self._dtype), weights, heads, experts, list(self._windows), self._served]

    def _measured(self, cache: KvCache) -> Compute:
        self._compute = choices.measure(self._products, self._dtype)
        if self._whole is None:
            return self._compute
        return self._compute.whole_below(self._rows_that_are_slower_whole(cache))

    def _rows_that_are_slower_whole(self, cache: KvCache) -> int:
        """The least number of rows from which on whole steps are not the faster ones; 1 if they never are.

        A member of many bytes has no time for all row counts: what it did not try takes the other way.
        """
        faster_below = 1
        started = time.monotonic()
        draw = torch.Generator().manual_seed(0)  # rows that differ: of a mixture they take different experts
        with torch.inference_mode():
            for rows in choices.ROW_BUCKETS:
                step = probe(rows, cache.blocks, cache.block_tokens)
                if step is None or time.monotonic() - started > _MEASURING_SECONDS:
                    break
                hidden = torch.randn((rows, self._architecture.hidden_size), generator=draw).to(self._dtype)
                arithmetic = self._compute.for_rows(rows)
                ways = (WHOLE, arithmetic)
                seconds = choices.seconds_of([partial(self._run_by, way, hidden, step, cache) for way in ways])
                if seconds[0] > seconds[1]:
                    break
                faster_below = 2 * rows
        return faster_below

    def run(self, hidden: torch.Tensor, step: Step, cache: KvCache) -> torch.Tensor:
        return self._run_by(self._compute.for_rows(step.tokens), hidden, step, cache)

    def _run_by(self, arithmetic: Arithmetic, hidden: torch.Tensor, step: Step, cache: KvCache) -> torch.Tensor:
        if arithmetic.whole and self._whole is not None:
            return self._whole.run(hidden, step)
        dtype, product = arithmetic.dtype, arithmetic.product
        x = hidden.to(dtype)
        cosine, sine = self._rope.at(torch.from_numpy(step.positions).to(self._device), dtype)
        slots = torch.from_numpy(step.slots).to(self._device)
        attentions = {window: self._attention(step, slots, window, dtype, cache) for window in set(self._windows)}
        for index, (decoder, window) in enumerate(zip(self._decoders, self._windows, strict=True)):
            x = decoder(x, cosine, sine, attentions[window](index), product)
        return x.to(self._dtype)

    def _attention(
        self, step: Step, slots: torch.Tensor, window: int | None, dtype: torch.dtype, cache: KvCache
    ) -> Callable[[int], Attention]:
        """What the layers with one window share in a step; called with a layer's index in the cache."""
        todo = attention_plan.plan(
            step, self._sizes, window=window, scale=self._scale, dtype=dtype, cache=cache.layers[0]
        )

        def of_layer(index: int) -> Attention:
            def attend(queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
                cache.write(index, slots, keys_values)
                return attention.attend(todo, queries, cache.layers[index])

            return attend

        return of_layer
