"""Families that transformers' own layers compute, over this package's paged KV cache.

transformers builds a model of the range's layers from a sliced config; the attention function registered here owns
keys and values, so that the layers need no cache of transformers'. Arithmetic is in the storage dtype, whatever the
processor: `model.choices` covers native families only. Importing this module imports transformers: seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from languagepipes_api.plan import LayerRange
from transformers import AttentionInterface
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from languagepipes_node.model import attention, attention_plan, loading
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.attention_plan import Sizes
from languagepipes_node.model.choices import Memory
from languagepipes_node.model.errors import UnsupportedModel
from languagepipes_node.model.kv import KvCache
from languagepipes_node.model.layers import Attention
from languagepipes_node.model.names import Part, layer_prefix
from languagepipes_node.model.quantised import Weight
from languagepipes_node.model.step import Step
from languagepipes_node.weights.source import TensorSource

_ATTENTION = "languagepipes_paged"


@dataclass(frozen=True)
class _StepState:
    """What the attention function needs of the step; handed through the layers as a keyword argument."""

    step: Step
    slots: torch.Tensor
    cache: KvCache
    sizes: Sizes
    prepared: dict[tuple[int | None, float], Callable[[int], Attention]]

    def attention(self, layer: int, window: int | None, scale: float, dtype: torch.dtype) -> Attention:
        key = (window, scale)
        if key not in self.prepared:
            self.prepared[key] = self._prepare(window, scale, dtype)
        return self.prepared[key](layer)

    def _prepare(self, window: int | None, scale: float, dtype: torch.dtype) -> Callable[[int], Attention]:
        cache = self.cache
        todo = attention_plan.plan(
            self.step, self.sizes, window=window, scale=scale, dtype=dtype, cache=cache.layers[0]
        )

        def of_layer(index: int) -> Attention:
            def attend(queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
                cache.write(index, self.slots, keys_values)
                return attention.attend(todo, queries, cache.layers[index])

            return attend

        return of_layer


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    languagepipes_state: _StepState,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, heads, tokens, head_dim] → ([1, tokens, heads, head_dim], None)."""
    if softcap is not None or s_aux is not None:
        raise UnsupportedModel(f"{type(module).__name__}: soft-capped attention and sinks are not supported")
    attend = languagepipes_state.attention(module.layer_idx, sliding_window, scaling, query.dtype)
    keys_values = torch.cat((key[0], value[0])).transpose(0, 1)  # [tokens, 2 × kv heads, head_dim]
    queries = query[0].transpose(0, 1)  # [tokens, heads, head_dim]
    return attend(queries.contiguous(), keys_values).view(1, *queries.shape), None


AttentionInterface.register(_ATTENTION, _attend)


def _config(architecture: Architecture, layers: LayerRange) -> Any:
    """transformers' config of a model that has these layers only, and a vocabulary of one token."""
    raw = dict(architecture.config)
    raw["num_hidden_layers"] = len(layers)
    raw["vocab_size"] = 1
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        raw[name] = None
    try:
        whole = CONFIG_MAPPING[architecture.family].from_dict(dict(architecture.config))
        if getattr(whole, "layer_types", None):
            raw["layer_types"] = whole.layer_types[layers.start : layers.stop]
        config = CONFIG_MAPPING[architecture.family].from_dict(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"{architecture.family}: transformers {transformers.__version__} cannot read its config.json: {error}"
        ) from error
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            raise UnsupportedModel(f"{name}: {getattr(config, name)!r} is not supported; only null is")
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModel("use_bidirectional_attention: true is not supported")
    config._attn_implementation = _ATTENTION
    return config


class FallbackLayers:
    """A range of transformers' decoder layers."""

    def __init__(
        self, architecture: Architecture, layers: LayerRange, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocates no weights. Raises UnsupportedModel."""
        self._dtype = dtype
        self._device = device
        self._sizes = Sizes(architecture.attention_heads, architecture.kv_heads, architecture.head_dim)
        self._layers: list[Any] = []
        self._held_bytes = 0
        self._parts: list[tuple[Part, ...]] = []
        if not len(layers):
            return
        config = _config(architecture, layers)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        self._layers = list(model.model.layers)
        for index, layer in enumerate(self._layers):
            if any(True for _ in layer.buffers()):
                raise UnsupportedModel(f"{architecture.family}: its layers hold buffers, which is not supported")
            prefix = layer_prefix(layers.start + index)
            self._parts.append(
                tuple(Part(prefix + name, tuple(value.shape), name) for name, value in layer.named_parameters())
            )
        self._kinds: list[str | None] = list(getattr(config, "layer_types", None) or [None] * len(self._layers))
        self._nested_rope = bool(getattr(config, "rope_parameters", None)) and "rope_type" not in config.rope_parameters
        # Not from the meta model: frequencies are computed at construction.
        self._rotary = type(model.model.rotary_emb)(config).to(device)

    @property
    def weight_bytes(self) -> int:
        return self._held_bytes

    def load(self, source: TensorSource, progress: Callable[[int], None], done: int) -> int:
        loading.check(source, [part for parts in self._parts for part in parts], quantised=False)
        for layer, parts in zip(self._layers, self._parts, strict=True):
            layer.to_empty(device=self._device)
            layer.requires_grad_(False)
            weights: dict[str, Weight] = dict(layer.named_parameters())
            done = loading.fill(source, parts, weights, progress, done)
            self._held_bytes += loading.held_bytes(weights.values())
        return done

    def settle(self, cache: KvCache, memory: Memory | None) -> None:
        """Nothing to choose: transformers' layers compute in the dtype at rest."""

    def run(self, hidden: torch.Tensor, step: Step, cache: KvCache) -> torch.Tensor:
        positions = torch.from_numpy(step.positions).to(self._device)[None]  # [1, tokens]
        slots = torch.from_numpy(step.slots).to(self._device)
        state = _StepState(step, slots, cache, self._sizes, {})
        x = hidden[None]
        embeddings = {
            kind: self._rotary(x, positions, kind) if self._nested_rope else self._rotary(x, positions)
            for kind in set(self._kinds)
        }
        for layer, kind in zip(self._layers, self._kinds, strict=True):
            x = layer(
                x,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=embeddings[kind],
                languagepipes_state=state,
            )
        return x[0]


class FallbackEnds:
    """A family's own embedding (which may scale) and final norm (which may not be a plain RMS norm)."""

    def __init__(self, architecture: Architecture, dtype: torch.dtype, device: torch.device) -> None:
        # A real model of one layer and one token: its modules are wanted, its weights are replaced.
        model = transformers.AutoModelForCausalLM.from_config(
            _config(architecture, LayerRange(0, 1)), dtype=dtype
        ).eval()
        self._embedding = model.model.embed_tokens.requires_grad_(False).to(device)
        self._norm = model.model.norm.requires_grad_(False).to(device)

    def embed(self, tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """tokens: int64 [tokens]; weight: [vocabulary, hidden]. Returns [tokens, hidden]."""
        self._embedding.weight.data = weight
        embedded: torch.Tensor = self._embedding(tokens)
        return embedded

    def norm(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """rows: [R, hidden]. Returns the same shape."""
        self._norm.weight.data = weight
        normed: torch.Tensor = self._norm(rows)
        return normed
