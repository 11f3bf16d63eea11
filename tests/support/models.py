"""Tiny random models of every family, made and answered for by transformers: what a ring must equal.

`model_named` in tests/conftest.py makes each once. Models that need no oracle are in llama_files.py, without torch.
"""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.weights.directory import SafetensorsDirectory

LAYERS = 6

_SIZES: dict[str, Any] = {
    "vocab_size": 193,
    "hidden_size": 72,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GQA = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, num_attention_heads=9, num_key_value_heads=3, head_dim=8),
    "llama tied, one kv head": lambda: transformers.LlamaConfig(
        **_SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True
    ),
    "llama with biases, llama3 rope": lambda: transformers.LlamaConfig(
        **_SIZES,
        **_GQA,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={**_LLAMA3, "original_max_position_embeddings": 64},
    ),
    "llama with linear rope": lambda: transformers.LlamaConfig(
        **_SIZES, **_GQA, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "mistral sliding": lambda: transformers.MistralConfig(**_SIZES, **_GQA, sliding_window=20),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES, num_attention_heads=4, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, **_GQA, tie_word_embeddings=True),
    "qwen3 sliding from layer 3": lambda: transformers.Qwen3Config(
        **_SIZES, **_GQA, use_sliding_window=True, sliding_window=20, max_window_layers=3
    ),
    "qwen3 with yarn rope": lambda: transformers.Qwen3Config(
        **_SIZES,
        **_GQA,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_SIZES, **_GQA, **_MOE, norm_topk_prob=True),
    "qwen3_moe with dense layers": lambda: transformers.Qwen3MoeConfig(
        **_SIZES, **_GQA, **_MOE, decoder_sparse_step=2, mlp_only_layers=[3], tie_word_embeddings=True
    ),
    "olmo2 by transformers' layers": lambda: transformers.Olmo2Config(
        **_SIZES, num_attention_heads=4, num_key_value_heads=2
    ),
    "gemma3 by transformers' layers": lambda: transformers.Gemma3TextConfig(
        **_SIZES,
        **_GQA,
        query_pre_attn_scalar=20,
        sliding_window=20,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    ),
}


@dataclass
class ParityModel:
    """A saved model and the unsplit model that answers for it."""

    name: str
    path: Path
    oracle: Any
    config: Any
    _oracles: dict[torch.dtype, Any] = field(default_factory=dict)
    # What the unsplit model said, since many tests ask it the same.
    _logits: dict[tuple[torch.dtype, tuple[int, ...]], torch.Tensor] = field(default_factory=dict)
    _generated: dict[tuple[int, tuple[int, ...]], list[int]] = field(default_factory=dict)

    @classmethod
    def make(cls, name: str, path: Path) -> ParityModel:
        config = MODELS[name]()
        torch.manual_seed(sum(name.encode()))
        oracle = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for tensor in oracle.parameters():
            if tensor.ndim == 1:  # norms and biases start as ones and zeros, which would hide a mix-up
                torch.nn.init.uniform_(tensor, 0.2, 1.5)
        oracle.requires_grad_(False)
        oracle.save_pretrained(path)
        return cls(name, path, oracle, config, {torch.float32: oracle})

    @classmethod
    def read(cls, path: Path) -> ParityModel:
        """A directory that was edited, answered for by what transformers reads from it."""
        oracle = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        oracle.requires_grad_(False)
        return cls(path.name, path, oracle, oracle.config, {torch.float32: oracle})

    @functools.cached_property
    def source(self) -> SafetensorsDirectory:
        return SafetensorsDirectory(self.path)

    @functools.cached_property
    def architecture(self) -> Architecture:
        return Architecture.from_config(json.loads(self.source.file("config.json"))).as_stored(
            self.source.index.tensors
        )

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        draw = random.Random(1000 * seed + length)
        return [draw.randrange(self.config.vocab_size) for _ in range(length)]

    @property
    def vocabulary(self) -> int:
        return int(self.config.vocab_size)

    def logits(self, tokens: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """float32 [tokens, vocabulary], of the unsplit model computed by transformers in `dtype`."""
        if dtype not in self._oracles:
            self._oracles[dtype] = copy.deepcopy(self.oracle).to(dtype)
        asked = (dtype, tuple(tokens))
        if asked not in self._logits:
            with torch.inference_mode():
                self._logits[asked] = self._oracles[dtype](torch.tensor([list(tokens)])).logits[0].float()
        return self._logits[asked]

    def generate(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Greedy tokens by transformers' own `generate`, in float32, unsplit."""
        asked = (tokens, tuple(prompt))
        if asked not in self._generated:
            ids = torch.tensor([list(prompt)])
            output = self.oracle.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
            self._generated[asked] = [int(token) for token in output[0, len(prompt) :]]
        return list(self._generated[asked])

    def logprobs(self, prompt: list[int], answer: list[int], dtype: torch.dtype = torch.float32) -> list[float]:
        """The unsplit model's natural-log probability, in `dtype`, of each token of `answer` after what precedes it."""
        logits = self.logits([*prompt, *answer], dtype)[len(prompt) - 1 : -1]
        chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None])
        return [float(value) for value in chosen[:, 0]]


ModelNamed = Callable[[str], ParityModel]
