"""What the planner must know of a model, as the weights store reports it: counts, never weights.

Counts are of parameters; a dtype turns them into bytes. The store derives them from config.json and the safetensors
headers (`languagepipes_node.model.facts`); the planner consumes them. This module reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

# Families whose layers transformers computes in the members, which takes memory of its own.
TRANSFORMERS_FAMILIES = ("gemma3_text", "olmo2")
_OF_EXPERTS = ("experts_per_token", "expert_intermediate_size")


@dataclass(frozen=True)
class LayerFacts:
    """One transformer layer.

    parameters: all that must be resident. active_parameters: what one token's step reads (fewer with MoE: the router,
    the shared parts and `top_k` experts).
    """

    parameters: int
    active_parameters: int


@dataclass(frozen=True)
class QuantisedShare:
    """Of a layer, the embedding or the head: how many of its parameters are quantised, and the bytes they take then
    (scales and minimums included). active_…: of those that one token's step reads.
    """

    parameters: int
    nbytes: int
    active_parameters: int
    active_nbytes: int


@dataclass(frozen=True)
class QuantisedFacts:
    """What one mode of `spec.model.quantization` makes of the model. note: a sentence for people, or nothing."""

    layers: tuple[QuantisedShare, ...]
    embedding: QuantisedShare
    head: QuantisedShare
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [list(astuple(layer)) for layer in self.layers],
            "embedding": list(astuple(self.embedding)),
            "head": list(astuple(self.head)),
            "note": self.note,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QuantisedFacts:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            tuple(QuantisedShare(*map(int, layer)) for layer in data["layers"]),
            QuantisedShare(*map(int, data["embedding"])),
            QuantisedShare(*map(int, data["head"])),
            str(data["note"]),
        )


@dataclass(frozen=True)
class ModelFacts:
    """One model at one revision.

    embedding_parameters: the input embedding (a step reads one row a token). head_parameters: the LM head, counted
    whole even if `tied_embeddings` (then it needs no memory of its own, but a step reads all of it).
    stored_dtype: how the source's tensors are stored ("bfloat16", "float32", "float16").
    download_bytes: what the store fetches. kv_parameters_per_token_layer: 2 × kv heads × head dim.
    quantised: by mode, whatever mode the store was asked for; a mode that this model cannot have is not in it.
    experts_per_token, expert_intermediate_size: of layers that are mixtures of experts; 0 without such layers.
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
    quantised: Mapping[str, QuantisedFacts] = field(default_factory=dict, hash=False)
    experts_per_token: int = 0
    expert_intermediate_size: int = 0

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def kv_parameters_per_token_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """A JSON object; layers as `[parameters, active_parameters]` pairs. A model without experts has no fields of
        theirs, so that the stored plans of such models keep their text.
        """
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("layers", "quantised")}
        for name in _OF_EXPERTS:
            if not data[name]:
                del data[name]
        if self.quantised:
            data["quantised"] = {mode: facts.to_json() for mode, facts in self.quantised.items()}
        data["layers"] = [[layer.parameters, layer.active_parameters] for layer in self.layers]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelFacts:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        fields = {
            name: data[name] for name in cls.__dataclass_fields__ if name not in ("layers", "quantised", *_OF_EXPERTS)
        }
        fields |= {name: int(data.get(name, 0)) for name in _OF_EXPERTS}
        layers = tuple(LayerFacts(int(total), int(active)) for total, active in data["layers"])
        # These, and those of experts, are absent in what stores of older versions reported.
        quantised = {str(mode): QuantisedFacts.from_json(each) for mode, each in data.get("quantised", {}).items()}
        return cls(layers=layers, quantised=quantised, **fields)
