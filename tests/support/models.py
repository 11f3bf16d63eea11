"""Tiny random models made and answered for by transformers, and a replica of members in one process to compare."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from languagepipes_api.plan import LayerRange
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.linear import Compute
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.source import TensorSource

LAYERS = 6
BLOCK_TOKENS = 16
BLOCKS = 96
CPU = torch.device("cpu")
SPLITS = {
    2: (0, 1, 6),
    3: (0, 2, 3, 6),
    5: (0, 1, 2, 3, 4, 6),
}

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

    @functools.cached_property
    def source(self) -> SafetensorsDirectory:
        return SafetensorsDirectory(self.path)

    @functools.cached_property
    def architecture(self) -> Architecture:
        return Architecture.from_config(json.loads(self.source.file("config.json")))

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        draw = random.Random(1000 * seed + length)
        return [draw.randrange(self.config.vocab_size) for _ in range(length)]

    def logits(self, tokens: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """float32 [tokens, vocabulary], of the unsplit model computed by transformers in `dtype`."""
        if dtype not in self._oracles:
            self._oracles[dtype] = copy.deepcopy(self.oracle).to(dtype)
        with torch.inference_mode():
            logits: torch.Tensor = self._oracles[dtype](torch.tensor([list(tokens)])).logits[0]
        return logits.float()

    def generate(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Greedy tokens by transformers' own `generate`, in float32, unsplit."""
        ids = torch.tensor([list(prompt)])
        output = self.oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return [int(token) for token in output[0, len(prompt) :]]


@dataclass
class Running:
    """One sequence and the blocks it holds, in order."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0

    def runs(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for block in self.blocks:
            if runs and sum(runs[-1]) == block:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((block, 1))
        return runs


def _column(values: Sequence[int]) -> Any:
    return np.array(values, dtype=np.int32)


class Chain:
    """Every member of a ring in one process: the End Model's layers first (and last), stages in between.

    splits: the members' borders; the first range is the End Model's. tail: layers of the last range are its too.
    """

    def __init__(
        self,
        model: ParityModel,
        splits: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        tail: bool = False,
        compute: Compute | None = None,
        source: TensorSource | None = None,
        device: torch.device = CPU,
        block_tokens: int = BLOCK_TOKENS,
        scattered: bool = False,
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.block_tokens = block_tokens
        ranges = [LayerRange(start, stop) for start, stop in itertools.pairwise(splits)]
        sizes: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "block_tokens": block_tokens,
            "blocks": BLOCKS,
            "compute": compute,
        }
        last = ranges.pop() if tail else LayerRange(LAYERS, LAYERS)
        self.end = EndLayers(model.architecture, ranges[0], last, **sizes)
        self.stages = [LayerStack(model.architecture, layers, **sizes) for layers in ranges[1:]]
        for member in (self.end, *self.stages):
            member.load(source or model.source, lambda done: None)
        self.free = list(range(BLOCKS))
        if scattered:
            random.Random(5).shuffle(self.free)

    def step(self, work: Sequence[tuple[Running, Sequence[int], Sequence[int]]]) -> torch.Tensor:
        """work: (sequence, its new tokens, which of them to answer). Returns float32 logits of those, in order."""
        counts, starts, runs, run_counts, rows, tokens = [], [], [], [], [], []
        for sequence, new, wanted in work:
            rows.extend(len(tokens) + row for row in wanted)
            tokens.extend(new)
            counts.append(len(new))
            starts.append(sequence.length)
            sequence.length += len(new)
            while len(sequence.blocks) * self.block_tokens < sequence.length:
                sequence.blocks.append(self.free.pop(0))
            runs.extend(sequence.runs())
            run_counts.append(len(sequence.runs()))
        batch = Batch(_column(counts), _column(starts), _column(run_counts), _column(runs), _column(rows))  # type: ignore[arg-type]
        return self.run(tokens, batch)

    def run(self, tokens: Sequence[int], batch: Batch) -> torch.Tensor:
        hidden = self.end.front(torch.tensor(list(tokens)), batch)
        for stage in self.stages:
            assert hidden.dtype == self.dtype
            hidden = stage.run(hidden, batch)
        if not self.end.has_tail:
            hidden = hidden[torch.from_numpy(batch.rows).to(hidden.device)]
        return self.end.logits(self.end.back(hidden, batch)).cpu()

    def end_sequence(self, sequence: Running) -> None:
        self.free.extend(sequence.blocks)
        sequence.blocks, sequence.length = [], 0

    def logits(self, tokens: Sequence[int], chunk: int = 1000) -> torch.Tensor:
        """float32 [tokens, vocabulary] of one sequence, prefilled `chunk` tokens at a time."""
        sequence, parts = Running(), []
        for begin in range(0, len(tokens), chunk):
            piece = tokens[begin : begin + chunk]
            parts.append(self.step([(sequence, piece, range(len(piece)))]))
        self.end_sequence(sequence)
        return torch.cat(parts)

    def generate(self, prompt: Sequence[int], tokens: int, chunk: int = 1000) -> list[int]:
        """Greedy, one sequence."""
        sequence = Running()
        for begin in range(0, len(prompt), chunk):
            piece = list(prompt[begin : begin + chunk])
            last = self.step([(sequence, piece, [len(piece) - 1])])
        out = [int(last.argmax())]
        while len(out) < tokens:
            out.append(int(self.step([(sequence, out[-1:], [0])]).argmax()))
        self.end_sequence(sequence)
        return out
