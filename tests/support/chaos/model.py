"""Random models of a few kilobytes whose text shows every token: each token is one character of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from languagepipes_node.model import names
from languagepipes_node.model.architecture import Architecture
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models

Dtype = Literal["float32", "bfloat16"]
CONTEXT = 512
LAYERS = 6
# Printable ASCII, which chat templates need, and then one letter a token.
CHARACTERS = ["\n", *map(chr, range(0x20, 0x7F)), *map(chr, range(0x4E00, 0x4E00 + 96))]
_END = "<|end|>"
END_TOKEN = len(CHARACTERS)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_SIZES: dict[str, Any] = {
    "vocab_size": END_TOKEN + 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "eos_token_id": END_TOKEN,
    "dtype": "float32",
    "use_sliding_window": True,
    "sliding_window": 48,
}
CONFIGS: dict[str, dict[str, Any]] = {
    # Every second layer has experts; every layer sees 48 tokens back.
    "moe": {
        **_SIZES,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "decoder_sparse_step": 2,
    },
    # Full attention in the first three layers, 48 tokens back in the others.
    "sliding": {**_SIZES, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "max_window_layers": 3},
}


def write_model(directory: Path, name: str, *, seed: int = 1) -> Path:
    """Write the model's files into `directory`, which is returned."""
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[name]
    (directory / "config.json").write_text(json.dumps(config))
    vocabulary = {character: number for number, character in enumerate([*CHARACTERS, _END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    # Decodes each token to its own UTF-8, whatever stands beside it.
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {"eos_token": _END, "chat_template": _TEMPLATE, "model_max_length": CONTEXT}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    save_file(_tensors(config, seed), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    architecture = Architecture.from_config(config)
    parts = [
        names.embedding_part(architecture),
        names.norm_part(architecture),
        names.head_part(architecture),
        *(part for layer in range(architecture.layer_count) for part in names.layer_parts(architecture, layer)),
    ]
    draw = np.random.default_rng(seed)
    return {part.name: _tensor(draw, part.shape) for part in parts}


def _tensor(draw: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:  # norms
        return draw.uniform(0.2, 1.5, shape).astype(np.float32)
    return (draw.standard_normal(shape) * 0.3).astype(np.float32)
