"""What a GGUF file says of its model, in the Hub's words: config.json, generation_config.json and tensor names.

Pure: metadata and tensor table in, plain data out. Only families whose GGUF layout is understood are accepted, and each
tensor is held against the shape that the metadata implies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from languagepipes_node.weights.errors import BrokenFile, UnsupportedArchitecture, UnsupportedFile
from languagepipes_node.weights.gguf_header import GgufHeader, GgufTensor

_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
# Llama 3.1's RoPE scaling, which a GGUF keeps only as the factors that follow from it.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_ORIGINAL = 1.0, 4.0, 8192
# Where answers end for llama.cpp (src/llama-vocab.cpp: special_eog_ids), of the families above.
_TURN_ENDS = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
        "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    }
)  # fmt: skip
_CONTROL = 3  # of tokenizer.ggml.token_type
_ROPE_FACTORS = "rope_freqs.weight"
_DERIVED = (_ROPE_FACTORS,)  # follow from config.json; not weights


@dataclass(frozen=True)
class Conversion:
    """One tensor to write. name: the Hub's. It begins at row `first_row` of `source` as a matrix [product of all but
    the last dimension, last dimension]; unpermute_heads: how many heads' rows llama.cpp interleaved, 0 for none.
    """

    name: str
    source: GgufTensor
    shape: tuple[int, ...]
    first_row: int
    unpermute_heads: int = 0


@dataclass(frozen=True)
class ConversionPlan:
    """All that follows from a header: config.json and generation_config.json as objects, and the tensors in order."""

    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: tuple[Conversion, ...]


def plan_conversion(
    header: GgufHeader, *, file: str, dtype: str, read_floats: Callable[[GgufTensor], npt.NDArray[np.float32]]
) -> ConversionPlan:
    """Decide everything before a byte is written. `read_floats` is asked for the RoPE factors alone.

    Raises UnsupportedArchitecture, UnsupportedFile or BrokenFile naming key, value and remedy.
    """
    reader = _Metadata(header.metadata, file)
    architecture = reader.string("general.architecture")
    if architecture not in _CLASSES:
        raise UnsupportedArchitecture(
            f"{file}: the architecture {architecture!r} is not served; served are {', '.join(_CLASSES)}"
        )
    if architecture == "llama" and reader.integer("llama.expert_count", default=0):
        raise UnsupportedArchitecture(f"{file}: a Llama with experts (Mixtral) is not served")
    config = _config(reader, header, architecture, dtype)
    if _ROPE_FACTORS in header.tensors:
        _add_llama3_rope(config, header.tensors[_ROPE_FACTORS], read_floats, file)
    generation: dict[str, Any] = {
        name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in config
    }
    return ConversionPlan(config, generation, tuple(_tensors(config, header, architecture, file)))


def _config(reader: _Metadata, header: GgufHeader, architecture: str, dtype: str) -> dict[str, Any]:
    def integer(key: str, default: int | None = None) -> int:
        return reader.integer(f"{architecture}.{key}", default=default)

    model_type, model_class = _CLASSES[architecture]
    heads, hidden = integer("attention.head_count"), integer("embedding_length")
    # Llama files say the head's width as the rotary one, Qwen files as the key's; both may leave it to the division.
    head_dim = integer("attention.key_length", integer("rope.dimension_count", hidden // max(1, heads)))
    if integer("attention.value_length", head_dim) != head_dim or integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedArchitecture(
            f"{reader.file}: keys, values and rotary dimensions of different widths are not served"
        )
    config: dict[str, Any] = {
        "architectures": [model_class],
        "model_type": model_type,
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length"),
        "num_hidden_layers": integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": integer("context_length"),
        "rms_norm_eps": reader.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "vocab_size": _vocabulary(header, reader.file),
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": _rope(reader, architecture),
        "use_cache": True,
    }
    if architecture == "qwen3moe":
        config |= {
            "num_experts": integer("expert_count"),
            "num_experts_per_tok": integer("expert_used_count"),
            "moe_intermediate_size": integer("expert_feed_forward_length"),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    for name, key in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        token = reader.integer(f"tokenizer.ggml.{key}_token_id", default=-1)
        if token >= 0:
            config[name] = token
    ends = [reader.integer(f"tokenizer.ggml.{key}_token_id", default=-1) for key in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in (*ends, *_ends_by_name(header.metadata)) if token >= 0))
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"):
        if config[name] < 1:
            raise BrokenFile(f"{reader.file}: the metadata gives {name} = {config[name]}; it must be at least 1")
    return config


def _ends_by_name(metadata: Mapping[str, Any]) -> list[int]:
    """Special tokens that end a turn by their names, whatever the file says of them: many files name one end alone."""
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        return []  # gguf_tokenizer refuses what is no vocabulary
    return [number for number in np.flatnonzero(kinds == _CONTROL).tolist() if tokens[number] in _TURN_ENDS]


def _vocabulary(header: GgufHeader, file: str) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BrokenFile(f"{file}: there is no token_embd.weight of two dimensions; this is no language model")
    return embedding.shape[0]


def _rope(reader: _Metadata, architecture: str) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": reader.number(f"{architecture}.rope.freq_base", default=10000.0),
    }
    kind = reader.string(f"{architecture}.rope.scaling.type", default="none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": reader.number(f"{architecture}.rope.scaling.factor")}
        original = reader.integer(f"{architecture}.rope.scaling.original_context_length", default=0)
        if original:
            rope["original_max_position_embeddings"] = original
    elif kind != "none":
        raise UnsupportedFile(f"{reader.file}: RoPE scaling {kind!r} is not read; use the model's safetensors instead")
    return rope


def _add_llama3_rope(
    config: dict[str, Any],
    tensor: GgufTensor,
    read_floats: Callable[[GgufTensor], npt.NDArray[np.float32]],
    file: str,
) -> None:
    """Recover Llama 3.1's parameters from the factors, and check that they give the same factors."""
    dimensions = config["head_dim"] // 2
    if tensor.shape != (dimensions,):
        raise BrokenFile(f"{file}: {_ROPE_FACTORS} has the shape {list(tensor.shape)}, not [{dimensions}]")
    factors = read_floats(tensor)
    factor = float(factors.max())
    theta = config["rope_parameters"]["rope_theta"]
    wavelengths = 2 * np.pi * theta ** (np.arange(dimensions, dtype=np.float64) / dimensions)
    smooth = (_LLAMA3_ORIGINAL / wavelengths - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
    expected = 1 / ((1 - np.clip(smooth, 0, 1)) / factor + np.clip(smooth, 0, 1))
    if not np.allclose(factors, expected, rtol=1e-3):
        raise UnsupportedFile(f"{file}: {_ROPE_FACTORS} follows no known RoPE scaling; use the model's safetensors")
    config["rope_parameters"] |= {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_ORIGINAL,
    }


def _tensors(config: dict[str, Any], header: GgufHeader, architecture: str, file: str) -> list[Conversion]:
    hidden, heads, kv_heads = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    head_dim, inner, vocabulary = config["head_dim"], config["intermediate_size"], config["vocab_size"]
    queries, keys = heads * head_dim, kv_heads * head_dim
    permuted = architecture == "llama"
    left = dict(header.tensors)
    for name in _DERIVED:
        left.pop(name, None)
    conversions: list[Conversion] = []

    def take(gguf_name: str, shape: tuple[int, ...]) -> GgufTensor:
        tensor = left.pop(gguf_name, None)
        if tensor is None:
            raise BrokenFile(f"{file}: tensor {gguf_name!r} is missing; the file is incomplete")
        if tensor.shape != shape:
            raise BrokenFile(
                f"{file}: tensor {gguf_name!r} has the shape {list(tensor.shape)}, the metadata implies {list(shape)}"
            )
        return tensor

    def whole(name: str, gguf_name: str, shape: tuple[int, ...], unpermute_heads: int = 0) -> None:
        conversions.append(Conversion(name, take(gguf_name, shape), shape, 0, unpermute_heads))

    def linear(name: str, gguf_name: str, rows: int, columns: int, unpermute_heads: int = 0) -> None:
        whole(f"{name}.weight", f"{gguf_name}.weight", (rows, columns), unpermute_heads)
        if f"{gguf_name}.bias" in left:
            whole(f"{name}.bias", f"{gguf_name}.bias", (rows,), unpermute_heads)

    whole("model.embed_tokens.weight", "token_embd.weight", (vocabulary, hidden))
    if config["num_hidden_layers"] * 9 > len(left) + 1:
        raise BrokenFile(
            f"{file}: {len(header.tensors)} tensors are too few for the {config['num_hidden_layers']} layers stated"
        )
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        whole(f"{ours}.input_layernorm.weight", f"{theirs}.attn_norm.weight", (hidden,))
        whole(f"{ours}.post_attention_layernorm.weight", f"{theirs}.ffn_norm.weight", (hidden,))
        linear(f"{ours}.self_attn.q_proj", f"{theirs}.attn_q", queries, hidden, heads if permuted else 0)
        linear(f"{ours}.self_attn.k_proj", f"{theirs}.attn_k", keys, hidden, kv_heads if permuted else 0)
        linear(f"{ours}.self_attn.v_proj", f"{theirs}.attn_v", keys, hidden)
        linear(f"{ours}.self_attn.o_proj", f"{theirs}.attn_output", hidden, queries)
        if not permuted:
            whole(f"{ours}.self_attn.q_norm.weight", f"{theirs}.attn_q_norm.weight", (head_dim,))
            whole(f"{ours}.self_attn.k_norm.weight", f"{theirs}.attn_k_norm.weight", (head_dim,))
        if architecture == "qwen3moe":
            experts, width = config["num_experts"], config["moe_intermediate_size"]
            whole(f"{ours}.mlp.gate.weight", f"{theirs}.ffn_gate_inp.weight", (experts, hidden))
            for projection, rows, columns in (
                ("gate", width, hidden),
                ("up", width, hidden),
                ("down", hidden, width),
            ):
                stacked = take(f"{theirs}.ffn_{projection}_exps.weight", (experts, rows, columns))
                conversions.extend(
                    Conversion(
                        f"{ours}.mlp.experts.{expert}.{projection}_proj.weight",
                        stacked,
                        (rows, columns),
                        expert * rows,
                    )
                    for expert in range(experts)
                )
        else:
            linear(f"{ours}.mlp.gate_proj", f"{theirs}.ffn_gate", inner, hidden)
            linear(f"{ours}.mlp.up_proj", f"{theirs}.ffn_up", inner, hidden)
            linear(f"{ours}.mlp.down_proj", f"{theirs}.ffn_down", hidden, inner)
    whole("model.norm.weight", "output_norm.weight", (hidden,))
    if not config["tie_word_embeddings"]:
        whole("lm_head.weight", "output.weight", (vocabulary, hidden))
    if left:
        raise UnsupportedFile(
            f"{file}: tensor {next(iter(left))[:200]!r} (and {len(left) - 1} more) has no place in {architecture}"
        )
    return conversions


class _Metadata:
    """Typed reads of the metadata, each with the key and value in its error."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self._values = values
        self.file = file

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if type(value) is not int:
            raise self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if type(value) not in (int, float) or not np.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(np.float32(value)) if type(value) is int else float(_shortest(value))

    def string(self, key: str, default: str | None = None) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _wrong(self, key: str, value: object, wanted: str) -> BrokenFile:
        shown = "missing" if value is None else f"{str(value)[:80]!r}"
        return BrokenFile(f"{self.file}: the metadata key {key!r} is {shown}; it must be {wanted}")


def _shortest(value: float) -> float:
    """A float32 widened to 9.999999747378752e-06 was written as 1e-05; config.json says the latter again."""
    return float(str(np.float32(value)))
