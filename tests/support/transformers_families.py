"""Tiny random models of the families that transformers' layers compute, as directories to serve.

transformers makes them and, unsplit, says what they answer. Each token of the vocabulary is one printable character, so
that equal text means equal tokens.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONTEXT = 256
_END = "<|end|>"
_CHARACTERS = string.ascii_letters + string.digits + " \n.,:;?!'\"()-"
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_SIZES: dict[str, Any] = {
    "vocab_size": len(_CHARACTERS) + 1,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": len(_CHARACTERS),
    "pad_token_id": None,
}
# Windows shorter than any question with its template around it.
_CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **_SIZES,
        head_dim=16,
        query_pre_attn_scalar=20,
        sliding_window=12,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        tie_word_embeddings=False,  # a tied random model repeats one character
    ),
    "olmo2": lambda: transformers.Olmo2Config(**_SIZES),
}
# With these, answers are varied and no token is a near tie (the best logit is 0.04 or more above the next).
_SEEDS = {"gemma3_text": 2, "olmo2": 3}
FAMILIES = tuple(_CONFIGS)


@dataclass(frozen=True)
class FamilyModel:
    """A model of one family in a directory, as on the Hub: config, weights in safetensors, tokenizer."""

    path: Path
    unsplit: Any

    @classmethod
    def write(cls, family: str, path: Path) -> FamilyModel:
        torch.manual_seed(_SEEDS[family])
        model = transformers.AutoModelForCausalLM.from_config(_CONFIGS[family](), dtype=torch.float32).eval()
        for tensor in model.parameters():
            if tensor.ndim == 1:  # norms start as ones or zeros, which would hide a mix-up
                torch.nn.init.uniform_(tensor, 0.2, 1.5)
        model.requires_grad_(False)
        model.save_pretrained(path)
        _write_tokenizer(path)
        return cls(path, model)

    def answer(self, question: str, max_tokens: int) -> str:
        """The greedy answer by transformers' own tokenizer and `generate`, in float32."""
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(self.path)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = self.unsplit.generate(
            prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        answer: str = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer


def _write_tokenizer(path: Path) -> None:
    # How the byte-level pre-tokenizer writes a character: " " is "Ġ".
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = [byte_level.pre_tokenize_str(character)[0][0] for character in _CHARACTERS]
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, _END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": _END, "chat_template": _TEMPLATE, "model_max_length": CONTEXT})
    )
