"""Tiny random models of each family, made with transformers, which is also the oracle."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def _config(family: str) -> transformers.PretrainedConfig:
    if family == "llama":  # untied, GQA with an odd head count
        return transformers.LlamaConfig(
            **_SIZES, num_attention_heads=3, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False
        )
    if family == "llama tied":
        return transformers.LlamaConfig(
            **_SIZES, num_attention_heads=6, num_key_value_heads=3, tie_word_embeddings=True
        )
    if family == "qwen3":
        return transformers.Qwen3Config(
            **_SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True
        )
    if family == "qwen3 sliding":
        return transformers.Qwen3Config(
            **_SIZES,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=3,
        )
    if family == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            **_SIZES,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        )
    raise AssertionError(family)


FAMILIES = ("llama", "llama tied", "qwen3", "qwen3 sliding", "qwen3_moe")


@dataclass
class TinyModel:
    """A saved model and the oracle that answers for it."""

    path: Path
    oracle: Any
    vocabulary: int

    @classmethod
    def make(cls, family: str, path: Path) -> TinyModel:
        torch.manual_seed(sum(family.encode()))
        config = _config(family)
        oracle = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        oracle.save_pretrained(path)
        return cls(path, oracle, config.vocab_size)

    def prompt(self, length: int) -> list[int]:
        source = random.Random(length)
        return [source.randrange(1, self.vocabulary) for _ in range(length)]

    def generate(self, prompt: list[int], tokens: int) -> list[int]:
        """Greedy tokens by transformers' own `generate`, in float32, unsplit."""
        ids = torch.tensor([prompt])
        output = self.oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, use_cache=True
        )
        return [int(token) for token in output[0, len(prompt) :]]

    def logprobs(self, prompt: list[int], answer: list[int], *, dtype: str = "float32") -> list[float]:
        """The oracle's natural-log probability, in `dtype`, of each token of `answer` after what precedes it."""
        oracle = self.oracle if dtype == "float32" else copy.deepcopy(self.oracle).to(getattr(torch, dtype))
        with torch.no_grad():
            logits = oracle(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(answer)[:, None])
        return [float(value) for value in chosen[:, 0]]
