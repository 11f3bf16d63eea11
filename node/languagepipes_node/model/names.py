"""Which tensors a layer, the embedding, the norm and the head consist of, and where in packed weights they lie.

Names are the Hub's safetensors names. A packed weight ("target") is its parts one after another along dimension 0, so
every part is one contiguous stretch of it and can be read straight into place. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from languagepipes_node.model.architecture import HEAD, Architecture, Experts

FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True)
class Part:
    """One tensor of the model. It fills rows `[start, start + shape[0])` of the packed weight `target`."""

    name: str
    shape: tuple[int, ...]
    target: str
    start: int = 0


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def layer_parts(architecture: Architecture, layer: int) -> tuple[Part, ...]:
    """The tensors of one decoder layer of a native family."""
    a = architecture
    prefix = layer_prefix(layer)
    query, key_value = a.attention_heads * a.head_dim, a.kv_heads * a.head_dim
    parts = [
        Part(f"{prefix}input_layernorm.weight", (a.hidden_size,), "input_norm"),
        *_packed(
            f"{prefix}self_attn.",
            "qkv",
            (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)),
            a.hidden_size,
            bias=a.attention_bias,
        ),
        *_packed(f"{prefix}self_attn.", "output", (("o_proj", a.hidden_size),), query, bias=a.output_bias),
        Part(f"{prefix}post_attention_layernorm.weight", (a.hidden_size,), "mlp_norm"),
    ]
    if a.qk_norm:
        parts.append(Part(f"{prefix}self_attn.q_norm.weight", (a.head_dim,), "qk_norm", 0))
        parts.append(Part(f"{prefix}self_attn.k_norm.weight", (a.head_dim,), "qk_norm", a.head_dim))
    if a.experts is not None and a.sparse_layers[layer]:
        parts.extend(_expert_parts(f"{prefix}mlp.", a.experts, a.hidden_size))
    else:
        size = a.intermediate_size
        gate_up = (("gate_proj", size), ("up_proj", size))
        parts.extend(_packed(f"{prefix}mlp.", "gate_up", gate_up, a.hidden_size, bias=a.mlp_bias))
        parts.extend(_packed(f"{prefix}mlp.", "down", (("down_proj", a.hidden_size),), size, bias=a.mlp_bias))
    return tuple(parts)


def embedding_part(architecture: Architecture) -> Part:
    return Part(architecture.embedding_tensor, (architecture.vocabulary_size, architecture.hidden_size), "embedding")


def norm_part(architecture: Architecture) -> Part:
    return Part(FINAL_NORM, (architecture.hidden_size,), "norm")


def head_part(architecture: Architecture) -> Part:
    """The LM head of a model whose embeddings are not tied."""
    return Part(HEAD, (architecture.vocabulary_size, architecture.hidden_size), "head")


def _packed(prefix: str, target: str, rows: tuple[tuple[str, int], ...], columns: int, *, bias: bool) -> list[Part]:
    parts, start = [], 0
    for name, count in rows:
        parts.append(Part(f"{prefix}{name}.weight", (count, columns), target, start))
        if bias:
            parts.append(Part(f"{prefix}{name}.bias", (count,), f"{target}_bias", start))
        start += count
    return parts


def _expert_parts(prefix: str, experts: Experts, hidden_size: int) -> list[Part]:
    size = experts.intermediate_size
    parts = [Part(f"{prefix}gate.weight", (experts.count, hidden_size), "router")]
    for expert in range(experts.count):
        own = f"{prefix}experts.{expert}."
        gate_up = expert * 2 * size
        parts.append(Part(f"{own}gate_proj.weight", (size, hidden_size), "experts_gate_up", gate_up))
        parts.append(Part(f"{own}up_proj.weight", (size, hidden_size), "experts_gate_up", gate_up + size))
        parts.append(Part(f"{own}down_proj.weight", (hidden_size, size), "experts_down", expert * hidden_size))
    return parts
