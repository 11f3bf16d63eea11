"""Small weight files, right and wrong, made byte by byte so that each lie is explicit."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCABULARY = 2, 32, 4, 2, 8, 64, 48


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header (an object, or its text) and data; `length` lies about the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str, shape: list[Any], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_bytes(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int | None = None,
    keys: int | None = None,
    metadata: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    data: bytes = b"",
) -> bytes:
    """A raw GGUF file; counts default to the truth."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if tensors is None else tensors,
        len(metadata) if keys is None else keys,
    )
    head += b"".join(metadata) + b"".join(infos)
    return head + b"\0" * (-len(head) % 32) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        string(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def write_gguf_model(
    path: Path,
    architecture: str = "llama",
    *,
    tied: bool = True,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    pre: str = "smollm",
    seed: int = 0,
    rope_base: float = 10000.0,
    rope_factors: list[float] | None = None,
) -> dict[str, np.ndarray]:
    """A tiny whole model as GGUF, written by the gguf library. Returns its tensors as float32 by GGUF name."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(rope_base)
    writer.add_rope_dimension_count(HEAD_DIM)
    if architecture != "llama":
        writer.add_key_length(HEAD_DIM)
        writer.add_value_length(HEAD_DIM)
    experts = 4 if architecture == "qwen3moe" else 0
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(INNER)
    _add_tokenizer(writer, pre)
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        values = random.standard_normal(shape, dtype=np.float32)
        kind = quantization if len(shape) > 1 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(values, kind)
        tensors[name] = gguf.quants.dequantize(stored, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)

    add("token_embd.weight", VOCABULARY, HIDDEN)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope_factors, dtype=np.float32))
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", HIDDEN)
        add(f"{block}.ffn_norm.weight", HIDDEN)
        add(f"{block}.attn_q.weight", HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}.attn_k.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}.attn_v.weight", KV_HEADS * HEAD_DIM, HIDDEN)
        add(f"{block}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        if architecture != "llama":
            add(f"{block}.attn_q_norm.weight", HEAD_DIM)
            add(f"{block}.attn_k_norm.weight", HEAD_DIM)
        if experts:
            add(f"{block}.ffn_gate_inp.weight", experts, HIDDEN)
            add(f"{block}.ffn_gate_exps.weight", experts, INNER, HIDDEN)
            add(f"{block}.ffn_up_exps.weight", experts, INNER, HIDDEN)
            add(f"{block}.ffn_down_exps.weight", experts, HIDDEN, INNER)
        else:
            add(f"{block}.ffn_gate.weight", INNER, HIDDEN)
            add(f"{block}.ffn_up.weight", INNER, HIDDEN)
            add(f"{block}.ffn_down.weight", HIDDEN, INNER)
    add("output_norm.weight", HIDDEN)
    if not tied:
        add("output.weight", VOCABULARY, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|end|>", *letters, "Ġ", "th", "the", "Ġthe", "<think>"]
    tokens += [f"<|unused{number}|>" for number in range(VOCABULARY - len(tokens))]
    kinds = [3 if token.startswith("<|") else 4 if token == "<think>" else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
