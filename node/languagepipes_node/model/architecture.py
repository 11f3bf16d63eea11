"""A transformer described by data, read from config.json. No torch here: the store and the loader both use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ArchitectureError(ValueError):
    """config.json describes no model that can be served; the message names the field, its value and the remedy."""


@dataclass(frozen=True)
class Experts:
    """Mixture of experts in a layer's MLP (Qwen3-MoE): `top_k` of `count`, each of `intermediate_size`."""

    count: int
    top_k: int
    intermediate_size: int
    normalise_top_k: bool


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one decoder from another.

    sliding_windows: per layer, the window in tokens or None for full attention. sparse_layers: per layer, whether its
    MLP is a mixture of experts. rope: the config's rope parameters (rope_type, rope_theta, …).
    """

    family: str
    layer_count: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocabulary_size: int
    rms_norm_eps: float
    max_position: int
    tied_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    qk_norm: bool
    activation: str
    stored_dtype: str
    sliding_windows: tuple[int | None, ...]
    sparse_layers: tuple[bool, ...]
    experts: Experts | None
    rope: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Architecture:
        """Read a Hub config.json (both transformers 4 and 5 spellings). Raises ArchitectureError."""
        raise NotImplementedError
