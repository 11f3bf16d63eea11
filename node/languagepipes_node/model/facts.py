"""What the planner must know of a model, counted from config.json and the headers. Reads no weight."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from languagepipes_api.facts import LayerFacts, ModelFacts, QuantisedFacts, QuantisedShare
from languagepipes_api.plan import Quantization

from languagepipes_node.model.architecture import EMBEDDING, HEAD, Architecture, ArchitectureError
from languagepipes_node.weights.errors import BrokenFile, UnsupportedArchitecture, UnsupportedFile
from languagepipes_node.weights.index import IndexEntry, WeightsIndex
from languagepipes_node.weights.quantised import Kind, kind_for

NORM = "model.norm.weight"
SERVED_DTYPES = ("float32", "bfloat16", "float16")

_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
# Old Llama checkpoints carry this buffer, which follows from config.json.
_NOT_WEIGHTS = ("rotary_emb.inv_freq",)


@dataclass(frozen=True)
class StoredTypes:
    """Of a source with block types of its own. kept: what asStored makes of tensors, by name. notes: for people, by
    mode.
    """

    kept: Mapping[str, Kind] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def read_facts(
    config: Mapping[str, Any],
    index: WeightsIndex,
    revision: str,
    download_bytes: int,
    stored: StoredTypes | None = None,
) -> ModelFacts:
    """Count. Raises UnsupportedArchitecture, UnsupportedFile or BrokenFile, naming tensor and numbers."""
    try:
        architecture = Architecture.from_config(dict(config)).as_stored(index.tensors)
    except ArchitectureError as error:
        raise UnsupportedArchitecture(str(error)) from error
    layers = _layers(architecture, index)
    embedding = _shaped(index, architecture.embedding_tensor, (architecture.vocabulary_size, architecture.hidden_size))
    norm = _shaped(index, NORM, (architecture.hidden_size,))
    head = embedding
    if not architecture.tied_embeddings:
        head = _shaped(index, HEAD, (architecture.vocabulary_size, architecture.hidden_size))
    experts = architecture.experts
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
        quantised=_quantised(architecture, index, stored or StoredTypes()),
        experts_per_token=experts.top_k if experts is not None else 0,
        expert_intermediate_size=experts.intermediate_size if experts is not None else 0,
    )


def _quantised(architecture: Architecture, index: WeightsIndex, stored: StoredTypes) -> dict[str, QuantisedFacts]:
    """By mode; empty for a family whose layers take no quantised weights."""
    if not architecture.native:
        return {}
    found: dict[str, QuantisedFacts] = {}
    modes: tuple[Quantization, ...] = ("int8", "int4", "asStored")
    for mode in modes:
        kinds = stored.kept if mode == "asStored" else _kinds(index, mode)
        if kinds:
            found[mode] = _with_kinds(architecture, index, kinds, stored.notes.get(mode, ""))
    return found


def _kinds(index: WeightsIndex, mode: Quantization) -> dict[str, Kind]:
    kinds = {name: kind_for(name, entry.shape, mode) for name, entry in index.tensors.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _with_kinds(
    architecture: Architecture, index: WeightsIndex, kinds: Mapping[str, Kind], note: str
) -> QuantisedFacts:
    experts = architecture.experts
    top_k, count = (experts.top_k, experts.count) if experts is not None else (1, 1)
    layers = [QuantisedShare(0, 0, 0, 0)] * architecture.layer_count
    ends = {name: QuantisedShare(0, 0, 0, 0) for name in (EMBEDDING, HEAD)}
    for name, kind in kinds.items():
        shape = index.tensors[name].shape
        parameters, nbytes = math.prod(shape), kind.nbytes(shape)
        match = _LAYER.fullmatch(name)
        if match is None:
            ends[name] = QuantisedShare(parameters, nbytes, parameters, nbytes)
        elif (layer := int(match[1])) < len(layers):
            sparse = match[2].startswith("mlp.experts.")
            layers[layer] = _plus(layers[layer], parameters, nbytes, sparse)
    if architecture.tied_embeddings:
        ends[EMBEDDING] = ends[HEAD] = ends[architecture.embedding_tensor]
    # Expert by expert the sum is exact; their share is what a token reads.
    shares = [
        QuantisedShare(
            each.parameters,
            each.nbytes,
            each.parameters - each.active_parameters + each.active_parameters * top_k // count,
            each.nbytes - each.active_nbytes + each.active_nbytes * top_k // count,
        )
        for each in layers
    ]
    return QuantisedFacts(tuple(shares), ends[EMBEDDING], ends[HEAD], note)


def _plus(share: QuantisedShare, parameters: int, nbytes: int, sparse: bool) -> QuantisedShare:
    """With one more tensor; active_… gathers what belongs to experts."""
    return QuantisedShare(
        share.parameters + parameters,
        share.nbytes + nbytes,
        share.active_parameters + (parameters if sparse else 0),
        share.active_nbytes + (nbytes if sparse else 0),
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
