"""Tiny models whose matrices can be quantised, and what they stand for once they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from languagepipes_api.plan import Quantization
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.quantise import quantise_model
from languagepipes_node.weights.quantised import MINIMUMS, SCALES, Blocks, dequantised, stored_kind

from support.models import LAYERS

_SIZES: dict[str, Any] = {
    "vocab_size": 193,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
QUANTISABLE = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES),
    "llama tied with biases": lambda: transformers.LlamaConfig(
        **_SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
    ),
}


def make(name: str, path: Path) -> Any:
    """A random model of transformers, saved to `path`."""
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(QUANTISABLE[name](), dtype=torch.float32).eval()
    for tensor in model.parameters():
        if tensor.ndim == 1:
            torch.nn.init.uniform_(tensor, 0.2, 1.5)
    model.requires_grad_(False).save_pretrained(path)
    return model


def quantise_directory(path: Path, output: Path, mode: Quantization) -> Path:
    """What the store makes of the model in `path`."""
    source = SafetensorsDirectory(path)
    return quantise_model({name: path / name for name in source.index.files}, source.index, output, quantization=mode)


def dequantised_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a directory as float32, quantised ones as what they stand for."""
    source = SafetensorsDirectory(path)
    held = {name: (source.info(name).dtype, source.info(name).shape) for name in source.names()}

    def read(name: str) -> np.ndarray:
        info = source.info(name)
        data = np.empty(info.shape, dtype=info.dtype)
        source.read_into(name, data.reshape(-1).view(np.uint8).data)
        return data

    tensors = {}
    for name in held:
        if name.endswith((SCALES, MINIMUMS)):
            continue
        found = stored_kind(name, held)
        if found is None:
            tensors[name] = read(name).astype(np.float32)
        else:
            minimums = read(name + MINIMUMS) if name + MINIMUMS in held else None
            tensors[name] = dequantised(Blocks(read(name), read(name + SCALES), minimums), found[0])
    return tensors


def oracle_of(model: Any, path: Path) -> Any:
    """transformers' model with the dequantised weights of `path`."""
    oracle = copy.deepcopy(model)
    values = {name: torch.from_numpy(value) for name, value in dequantised_tensors(path).items()}
    experts = getattr(oracle.config, "num_experts", 0)
    if experts:
        values = _packed_experts(values, oracle.config.num_hidden_layers, experts)
    if oracle.config.tie_word_embeddings:
        values["lm_head.weight"] = values["model.embed_tokens.weight"]
    oracle.load_state_dict(values)
    return oracle


def _packed_experts(values: dict[str, torch.Tensor], layers: int, experts: int) -> dict[str, torch.Tensor]:
    """As transformers 5 holds them in memory: one tensor a layer."""
    rest = {name: value for name, value in values.items() if ".experts." not in name}
    for layer in range(layers):
        prefix = f"model.layers.{layer}.mlp.experts."
        each = [
            {part: values[f"{prefix}{expert}.{part}_proj.weight"] for part in ("gate", "up", "down")}
            for expert in range(experts)
        ]
        rest[f"{prefix}gate_up_proj"] = torch.stack([torch.cat((one["gate"], one["up"])) for one in each])
        rest[f"{prefix}down_proj"] = torch.stack([one["down"] for one in each])
    return rest


def config_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((path / "config.json").read_text())
    return loaded


def rounded_activations(x: torch.Tensor) -> torch.Tensor:
    """As the native kernels round them: whole numbers from -127 to 127 times a scale a group of 32 (0 for zeros)."""
    groups = x.reshape(x.shape[0], -1, 32)
    greatest = groups.abs().amax(2, keepdim=True)
    whole = torch.round(groups * torch.where(greatest > 0, 127 / greatest, 0))
    return (whole * (greatest / 127)).reshape(x.shape)
