"""A random Llama of a few kilobytes with a byte-level tokenizer: small, but real files in a real directory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LAYERS = 5
_HIDDEN, _INTERMEDIATE, _HEADS, _KV_HEADS, _HEAD_DIM = 64, 128, 4, 2, 16
_END = "<|end|>"
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_tiny_llama(directory: Path) -> Path:
    """Write config.json, model.safetensors and the tokenizer's files into `directory`, which is returned."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, _END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": _END, "chat_template": _TEMPLATE, "model_max_length": 512})
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_DIM,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "eos_token_id": vocabulary[_END],
    }
    (directory / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)

    def weight(*shape: int) -> np.ndarray:
        return random.normal(0.0, 0.05, shape).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": weight(len(vocabulary), _HIDDEN),
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": np.ones(_HIDDEN, np.float32),
            f"{prefix}.post_attention_layernorm.weight": np.ones(_HIDDEN, np.float32),
            f"{prefix}.self_attn.q_proj.weight": weight(_HEADS * _HEAD_DIM, _HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": weight(_KV_HEADS * _HEAD_DIM, _HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": weight(_KV_HEADS * _HEAD_DIM, _HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": weight(_HIDDEN, _HEADS * _HEAD_DIM),
            f"{prefix}.mlp.gate_proj.weight": weight(_INTERMEDIATE, _HIDDEN),
            f"{prefix}.mlp.up_proj.weight": weight(_INTERMEDIATE, _HIDDEN),
            f"{prefix}.mlp.down_proj.weight": weight(_HIDDEN, _INTERMEDIATE),
        }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
