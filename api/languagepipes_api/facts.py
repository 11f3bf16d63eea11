"""What the planner must know of a model, as the weights store reports it: counts, never weights.

Counts are of parameters; a dtype turns them into bytes. The store derives them from config.json and the safetensors
headers (`languagepipes_node.model.facts`); the planner consumes them. This module reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Families whose layers transformers computes in the members, which takes memory of its own.
TRANSFORMERS_FAMILIES = ("gemma3_text", "olmo2")


@dataclass(frozen=True)
class LayerFacts:
    """One transformer layer.

    parameters: all that must be resident. active_parameters: what one token's step reads (fewer with MoE: the router,
    the shared parts and `top_k` experts).
    """

    parameters: int
    active_parameters: int


@dataclass(frozen=True)
class ModelFacts:
    """One model at one revision.

    embedding_parameters: the input embedding (a step reads one row a token). head_parameters: the LM head, counted
    whole even if `tied_embeddings` (then it needs no memory of its own, but a step reads all of it).
    stored_dtype: how the source's tensors are stored ("bfloat16", "float32", "float16").
    download_bytes: what the store fetches. kv_parameters_per_token_layer: 2 × kv heads × head dim.
    """

    revision: str
    family: str
    layers: tuple[LayerFacts, ...]
    hidden_size: int
    vocabulary_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    embedding_parameters: int
    head_parameters: int
    norm_parameters: int
    tied_embeddings: bool
    max_position: int
    stored_dtype: str
    download_bytes: int

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def kv_parameters_per_token_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """A JSON object; layers as `[parameters, active_parameters]` pairs."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "layers"}
        data["layers"] = [[layer.parameters, layer.active_parameters] for layer in self.layers]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelFacts:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        fields = {name: data[name] for name in cls.__dataclass_fields__ if name != "layers"}
        layers = tuple(LayerFacts(int(total), int(active)) for total, active in data["layers"])
        return cls(layers=layers, **fields)
