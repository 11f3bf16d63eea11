"""What the planner must know of a model, counted from config.json and the headers. Reads no weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from languagepipes_api.facts import LayerFacts, ModelFacts

from languagepipes_node.model.architecture import Architecture, ArchitectureError
from languagepipes_node.weights.errors import BrokenFile, UnsupportedArchitecture, UnsupportedFile
from languagepipes_node.weights.index import IndexEntry, WeightsIndex

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
NORM = "model.norm.weight"
SERVED_DTYPES = ("float32", "bfloat16", "float16")

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
# Old Llama checkpoints carry this buffer, which follows from config.json.
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)


def read_facts(config: Mapping[str, Any], index: WeightsIndex, revision: str, download_bytes: int) -> ModelFacts:
    """Count. Raises UnsupportedArchitecture, UnsupportedFile or BrokenFile, naming tensor and numbers."""
    try:
        architecture = Architecture.from_config(dict(config))
    except ArchitectureError as error:
        raise UnsupportedArchitecture(str(error)) from error
    layers = _layers(architecture, index)
    embedding = _shaped(index, EMBEDDING, (architecture.vocabulary_size, architecture.hidden_size))
    norm = _shaped(index, NORM, (architecture.hidden_size,))
    head = embedding
    if not architecture.tied_embeddings:
        head = _shaped(index, HEAD, (architecture.vocabulary_size, architecture.hidden_size))
    return ModelFacts(
        revision=revision,
        family=architecture.family,
        layers=layers,
        hidden_size=architecture.hidden_size,
        vocabulary_size=architecture.vocabulary_size,
        attention_heads=architecture.attention_heads,
        kv_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.intermediate_size,
        embedding_parameters=embedding,
        head_parameters=head,
        norm_parameters=norm,
        tied_embeddings=architecture.tied_embeddings,
        max_position=architecture.max_position,
        stored_dtype=_stored_dtype(index),
        download_bytes=download_bytes,
    )


def _layers(architecture: Architecture, index: WeightsIndex) -> tuple[LayerFacts, ...]:
    count = architecture.layer_count
    totals, experts = [0] * count, [0] * count
    for name, entry in index.tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None or match[2].endswith(_NOT_WEIGHTS) or int(match[1]) >= count:
            continue  # layers beyond the count are multi-token-prediction heads, which nobody runs
        _check_dtype(name, entry)
        parameters = math.prod(entry.shape)
        totals[int(match[1])] += parameters
        if match[2].startswith("mlp.experts."):
            experts[int(match[1])] += parameters
    for layer, total in enumerate(totals):
        if not total:
            raise BrokenFile(f"config.json states {count} layers but no tensor belongs to layer {layer}")
        sparse = architecture.sparse_layers[layer]
        if sparse != bool(experts[layer]):
            raise BrokenFile(
                f"config.json says that layer {layer} has {'experts' if sparse else 'no experts'}; its tensors differ"
            )
    chosen = architecture.experts
    share = (chosen.top_k, chosen.count) if chosen is not None else (1, 1)
    return tuple(
        LayerFacts(total, total - of_experts + of_experts * share[0] // share[1])
        for total, of_experts in zip(totals, experts, strict=True)
    )


def _shaped(index: WeightsIndex, name: str, shape: tuple[int, ...]) -> int:
    entry = index.tensors.get(name)
    if entry is None:
        raise BrokenFile(f"tensor {name} is missing; the weights do not belong to this config.json")
    _check_dtype(name, entry)
    if entry.shape != shape:
        raise BrokenFile(f"tensor {name} has the shape {list(entry.shape)}; config.json says {list(shape)}")
    return math.prod(shape)


def _check_dtype(name: str, entry: IndexEntry) -> None:
    if entry.dtype not in SERVED_DTYPES:
        raise UnsupportedFile(
            f"tensor {name} is stored as {entry.dtype}; served are {', '.join(SERVED_DTYPES)}: "
            "name a revision that is not quantised"
        )


def _stored_dtype(index: WeightsIndex) -> str:
    """The dtype that most bytes of served dtypes have."""
    amounts = dict.fromkeys(SERVED_DTYPES, 0)
    for entry in index.tensors.values():
        if entry.dtype in amounts:
            amounts[entry.dtype] += entry.nbytes
    return max(amounts, key=lambda dtype: amounts[dtype])
