"""Random Llamas of a few kilobytes as files, by numpy alone: a Hub's repository, and a directory with a tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True)
class LlamaShape:
    """A Llama with tied embeddings, in float32."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    context: int

    def config(self, **more: Any) -> dict[str, Any]:
        """config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "dtype": "float32",
            **more,
        }

    def tensors(self, seed: int, *, deviation: float = 1.0) -> dict[str, np.ndarray]:
        """Matrices are drawn with this standard deviation, norms are about one."""
        random = np.random.default_rng(seed)
        head_dim = self.hidden // self.heads

        def matrix(*shape: int) -> np.ndarray:
            return random.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

        def norm() -> np.ndarray:
            return 1 + random.standard_normal(self.hidden, dtype=np.float32) / np.float32(16)

        tensors = {"model.embed_tokens.weight": matrix(self.vocabulary, self.hidden), "model.norm.weight": norm()}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            tensors |= {
                f"{prefix}.input_layernorm.weight": norm(),
                f"{prefix}.post_attention_layernorm.weight": norm(),
                f"{prefix}.self_attn.q_proj.weight": matrix(self.heads * head_dim, self.hidden),
                f"{prefix}.self_attn.k_proj.weight": matrix(self.kv_heads * head_dim, self.hidden),
                f"{prefix}.self_attn.v_proj.weight": matrix(self.kv_heads * head_dim, self.hidden),
                f"{prefix}.self_attn.o_proj.weight": matrix(self.hidden, self.heads * head_dim),
                f"{prefix}.mlp.gate_proj.weight": matrix(self.intermediate, self.hidden),
                f"{prefix}.mlp.up_proj.weight": matrix(self.intermediate, self.hidden),
                f"{prefix}.mlp.down_proj.weight": matrix(self.hidden, self.intermediate),
            }
        return tensors


REPOSITORY = LlamaShape(layers=3, hidden=32, heads=4, kv_heads=4, intermediate=64, vocabulary=96, context=128)
LAYERS = REPOSITORY.layers
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """The repository's."""
    return REPOSITORY.tensors(seed)


def repository(seed: int = 0, *, shards: int = 1, extra: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """What a Hub repository of this model holds, with files that must not be fetched."""
    values = tensors(seed)
    files = {
        "config.json": json.dumps(REPOSITORY.config()).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "README.md": b"# never fetched",
        "pytorch_model.bin": b"never fetched either",
        "onnx/model.safetensors": b"nor this",
    }
    names = sorted(values)
    if shards == 1:
        files["model.safetensors"] = save(values)
    else:
        parts = [names[number::shards] for number in range(shards)]
        titles = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
        for title, part in zip(titles, parts, strict=True):
            files[title] = save({name: values[name] for name in part})
        weight_map = {name: title for title, part in zip(titles, parts, strict=True) for name in part}
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        files["consolidated.safetensors"] = b"a second copy, never fetched"
    return files | (extra or {})


def fetched_names(files: dict[str, bytes]) -> set[str]:
    unwanted = ("README.md", "pytorch_model.bin", "onnx/model.safetensors", "consolidated.safetensors")
    return set(files) - set(unwanted)


_END = "<|end|>"
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


# One token a byte, and the end of a turn.
TINY_LLAMA = LlamaShape(layers=5, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=257, context=512)


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
        json.dumps({"eos_token": _END, "chat_template": _TEMPLATE, "model_max_length": TINY_LLAMA.context})
    )
    config = TINY_LLAMA.config(eos_token_id=vocabulary[_END], hidden_act="silu", attention_bias=False, mlp_bias=False)
    (directory / "config.json").write_text(json.dumps(config))
    weights = TINY_LLAMA.tensors(7, deviation=0.05)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
