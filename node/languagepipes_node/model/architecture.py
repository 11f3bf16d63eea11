"""A transformer described by data, read from config.json. No torch here: the store and the loader both use it.

Families of `NATIVE_FAMILIES` run on this package's own decoder layer; those of `TRANSFORMERS_FAMILIES` on
transformers' layers (`model.fallback`). Every other family is refused by name: what has no parity test is not served.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

from languagepipes_api.facts import TRANSFORMERS_FAMILIES

from languagepipes_node.model.errors import ModelError

NATIVE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_DTYPES = ("float32", "bfloat16", "float16")
# What a rope type needs beside rope_theta; the formulas are in model.rope.
_ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
# Types that serve more positions than `max_position_embeddings` says (vLLM multiplies for the same ones). Llama 3's
# configs say the larger number, and so do Gemma 3's, which are linear.
_EXTENDING_ROPES = ("linear", "yarn")
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# What a key means that config.json leaves out, where the family's class in transformers has a number of its own.
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {"num_key_value_heads": 4},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "olmo2": {"rms_norm_eps": 1e-5},
}
_LARGEST = (1 << 31) - 1  # no count in a config.json is larger; keeps products of two of them within 64 bits
_MOST_LAYERS = _MOST_EXPERTS = 4096  # their descriptions are held one by one


class ArchitectureError(ModelError):
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

    sliding_windows: per layer, the window in tokens (a token sees itself and the window - 1 before it) or None for full
    attention. sparse_layers: per layer, whether its MLP is a mixture of experts. attention_bias: of the query, key and
    value projections; output_bias: of the attention's output projection. activation: "silu", "gelu" or "gelu_tanh".
    rope: the rope parameters (rope_type, rope_theta, …), as transformers 5 spells them. max_position: positions that
    can be served, those that the rope's scaling adds included. embedding_tensor: the name that the embedding is stored
    under. For fallback families these fields say sizes only, and `config` holds config.json for transformers.
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
    output_bias: bool = False
    embedding_tensor: str = EMBEDDING
    config: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def native(self) -> bool:
        """Whether this package's own decoder layer serves the family."""
        return self.family in NATIVE_FAMILIES

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Architecture:
        """Read a Hub config.json (both transformers 4 and 5 spellings). Raises ArchitectureError."""
        if not isinstance(config, dict):
            raise ArchitectureError(f"config.json holds a {type(config).__name__}, not an object")
        family = config.get("model_type")
        if family not in NATIVE_FAMILIES + TRANSFORMERS_FAMILIES:
            supported = ", ".join(NATIVE_FAMILIES + TRANSFORMERS_FAMILIES)
            raise ArchitectureError(f"model_type: {family!r} is not a supported family; supported are {supported}")
        if config.get("quantization_config"):
            raise ArchitectureError(
                "quantization_config: pre-quantised weights are not supported; use the unquantised checkpoint"
            )
        config = {**_CLASS_DEFAULTS.get(family, {}), **config}
        layer_count = _integer(config, "num_hidden_layers", largest=_MOST_LAYERS)
        hidden_size = _integer(config, "hidden_size")
        heads = _integer(config, "num_attention_heads")
        kv_heads = _integer(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise ArchitectureError(
                f"num_key_value_heads: {kv_heads} does not divide num_attention_heads ({heads}); the config is wrong"
            )
        head_dim = _integer(config, "head_dim", hidden_size // heads)
        if head_dim % 2:
            raise ArchitectureError(f"head_dim: {head_dim} is odd; rotary embeddings need an even size")
        max_position = _integer(config, "max_position_embeddings")
        native = family in NATIVE_FAMILIES
        experts = _experts(config) if family == "qwen3_moe" else None
        attention_bias = family == "qwen2" or (
            family not in ("qwen2", "mistral") and _boolean(config, "attention_bias", False)
        )
        return cls(
            family=family,
            layer_count=layer_count,
            hidden_size=hidden_size,
            intermediate_size=_integer(config, "intermediate_size"),
            attention_heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocabulary_size=_integer(config, "vocab_size"),
            rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
            max_position=_served_positions(config, family, max_position),
            tied_embeddings=_boolean(config, "tie_word_embeddings", family == "gemma3_text"),
            attention_bias=attention_bias,
            output_bias=attention_bias and family != "qwen2",
            mlp_bias=family == "llama" and _boolean(config, "mlp_bias", False),
            qk_norm=family in ("qwen3", "qwen3_moe", "gemma3_text", "olmo2"),
            activation=_activation(config, native),
            stored_dtype=_stored_dtype(config),
            sliding_windows=_sliding_windows(config, family, layer_count),
            sparse_layers=_sparse_layers(config, experts, layer_count),
            experts=experts,
            rope=_rope(config, max_position) if native else {},
            eos_token_ids=_eos_token_ids(config),
            config={} if native else config,
        )

    def as_stored(self, tensors: Container[str]) -> Architecture:
        """The same for a model whose files hold these tensors, whatever config.json says of tied embeddings.

        As transformers 5: a head that is stored beside the embedding is the head, and one that is stored alone is
        the embedding too.
        """
        if not self.tied_embeddings or HEAD not in tensors:
            return self
        if EMBEDDING in tensors:
            return replace(self, tied_embeddings=False)
        return replace(self, embedding_tensor=HEAD)


def _whole(name: str, value: Any, smallest: int, largest: int = _LARGEST) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ArchitectureError(f"{name}: {value!r} is not a whole number from {smallest} to {largest}")
    return value


def _integer(
    config: dict[str, Any], name: str, default: int | None = None, *, smallest: int = 1, largest: int = _LARGEST
) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if value is None:
        raise ArchitectureError(f"{name}: missing from config.json; it is needed to describe the model")
    return _whole(name, value, smallest, largest)


def _number(config: dict[str, Any], name: str, default: float | None = None) -> float:
    value = config.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ArchitectureError(f"{name}: {value!r} is not a positive number")
    return float(value)


def _boolean(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ArchitectureError(f"{name}: {value!r} is neither true nor false")
    return value


def _activation(config: dict[str, Any], native: bool) -> str:
    name = config.get("hidden_act") or config.get("hidden_activation") or "silu"
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    if not native and isinstance(name, str):
        return name
    raise ArchitectureError(f"hidden_act: {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}")


def _stored_dtype(config: dict[str, Any]) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ArchitectureError(
            f"dtype: {value!r} is not supported; convert the weights to one of {', '.join(_DTYPES)}"
        )
    return name


def _eos_token_ids(config: dict[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(_whole("eos_token_id", item, 0) for item in values)


def _experts(config: dict[str, Any]) -> Experts:
    # transformers 5 writes num_local_experts where the Hub's files say num_experts.
    name = "num_experts" if config.get("num_experts") is not None else "num_local_experts"
    count = _integer(config, name, largest=_MOST_EXPERTS)
    top_k = _integer(config, "num_experts_per_tok")
    if top_k > count:
        raise ArchitectureError(f"num_experts_per_tok: {top_k} is more than the {count} experts; the config is wrong")
    return Experts(
        count=count,
        top_k=top_k,
        intermediate_size=_integer(config, "moe_intermediate_size"),
        normalise_top_k=_boolean(config, "norm_topk_prob", False),
    )


def _sparse_layers(config: dict[str, Any], experts: Experts | None, layer_count: int) -> tuple[bool, ...]:
    if experts is None:
        return (False,) * layer_count
    step = _integer(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ArchitectureError(f"mlp_only_layers: {dense!r} is not a list of layer numbers")
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layer_count))


def _sliding_windows(config: dict[str, Any], family: str, layer_count: int) -> tuple[int | None, ...]:
    """Which layers slide, as each family's transformers class decides it."""
    full: tuple[int | None, ...] = (None,) * layer_count
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        enabled = _boolean(config, "use_sliding_window", False)
    else:
        enabled = family in ("mistral", "gemma3_text")
    if not enabled or config.get("sliding_window") is None:
        return full
    window = _integer(config, "sliding_window")
    if family in ("mistral", "qwen3_moe"):
        return (window,) * layer_count
    types = config.get("layer_types")
    if types is None and family == "gemma3_text":
        pattern = _integer(config, "sliding_window_pattern", config.get("_sliding_window_pattern") or 6)
        return tuple(None if (layer + 1) % pattern == 0 else window for layer in range(layer_count))
    if types is None:
        first = _integer(config, "max_window_layers", 28, smallest=0)
        return tuple(window if layer >= first else None for layer in range(layer_count))
    if not isinstance(types, list) or len(types) != layer_count:
        raise ArchitectureError(f"layer_types: has to be a list with one entry for each of the {layer_count} layers")
    known: dict[str, int | None] = {"full_attention": None, "sliding_attention": window}
    for kind in types:
        if kind not in known:
            raise ArchitectureError(f"layer_types: {kind!r} is not supported; supported are {', '.join(known)}")
    return tuple(known[kind] for kind in types)


def _given_rope(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    if not isinstance(given, dict):
        raise ArchitectureError(f"{where}: {given!r} is not an object")
    return where, given


def _served_positions(config: dict[str, Any], family: str, max_position: int) -> int:
    """`max_position_embeddings`, extended by the rope's scaling as model cards tell their users to: a `rope_scaling` is
    written into config.json, and the other number is left as it was."""
    _, given = _given_rope(config)
    kind = given.get("rope_type") or given.get("type")
    if kind not in _EXTENDING_ROPES or family == "gemma3_text" or given.get("factor") is None:
        return max_position
    original = max_position
    if kind == "yarn":
        trained = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
        original = _whole("original_max_position_embeddings", trained or max_position, 1)
    return max(max_position, int(min(original * _number(given, "factor"), _LARGEST)))


def _rope(config: dict[str, Any], max_position: int) -> dict[str, Any]:
    """transformers 5's `rope_parameters`, or 4's `rope_scaling` beside `rope_theta`, as one flat dict."""
    where, given = _given_rope(config)
    rope: dict[str, Any] = {name: value for name, value in given.items() if name != "type" and value is not None}
    kind = rope.setdefault("rope_type", given.get("type") or "default")
    if kind not in _ROPE_FIELDS:
        raise ArchitectureError(
            f"{where}.rope_type: {kind!r} is not supported for {config['model_type']};"
            f" supported are {', '.join(_ROPE_FIELDS)}"
        )
    for source in (config, rope):
        if source.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise ArchitectureError(
                f"partial_rotary_factor: {source['partial_rotary_factor']!r} is not supported; only 1.0 is"
            )
    rope["rope_theta"] = _number(rope, "rope_theta", _number(config, "rope_theta", 10_000.0))
    if kind in ("llama3", "yarn"):
        original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = original or max_position
    if kind == "yarn" and "factor" not in rope:
        rope["factor"] = max_position / _number(rope, "original_max_position_embeddings")
    for name in _ROPE_FIELDS[kind]:
        if name not in rope:
            raise ArchitectureError(f"{where}.{name}: missing; rope type {kind!r} needs it")
        _number(rope, name)
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ArchitectureError(
            f"{where}.high_freq_factor: {rope['high_freq_factor']!r} has to be above low_freq_factor"
            f" ({rope['low_freq_factor']!r})"
        )
    return rope
