"""The decoder's own layers against transformers' `generate`: one process, the same weights, no ring and no sockets.

    python benchmarks/layers.py .cache/models/smollm2-bfloat16 --threads 2

Prints medians and their spread for the first token of prompts and for decoding several sequences, with transformers in
float32 and in bfloat16; `ratio` is of the faster of the two to ours at the processor's best level. `--levels 3` adds
ours at lower levels of `model.kernels` (3: float32 arithmetic and torch's, as on a processor without bfloat16 dot
products). All take turns, so that noise of the machine falls on each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from languagepipes_node.model.batch import Batch

BLOCK_TOKENS = 64
DECODE_PROMPT = 32
DECODE_STEPS = 24
clock = time.perf_counter


class Ours:
    """All layers of a model in this process: the End Model's first one, then the rest as one stage."""

    def __init__(self, path: Path, dtype: torch.dtype, sequences: int, tokens: int, level: int | None) -> None:
        import torch
        from languagepipes_api.plan import LayerRange
        from languagepipes_node.model import kernels
        from languagepipes_node.model.architecture import Architecture
        from languagepipes_node.model.end import EndLayers
        from languagepipes_node.model.stack import LayerStack
        from languagepipes_node.weights.directory import SafetensorsDirectory

        self.level = level
        kernels.use_level(level)
        source = SafetensorsDirectory(path)
        architecture = Architecture.from_config(json.loads(source.file("config.json")))
        self.blocks_each = -(-tokens // BLOCK_TOKENS)
        count = architecture.layer_count
        sizes: dict[str, Any] = {
            "dtype": dtype,
            "device": torch.device("cpu"),
            "block_tokens": BLOCK_TOKENS,
            "blocks": self.blocks_each * sequences,
        }
        self.end = EndLayers(architecture, LayerRange(0, 1), LayerRange(count, count), **sizes)
        self.stage = LayerStack(architecture, LayerRange(1, count), **sizes)
        self.end.load(source, lambda done: None)
        self.stage.load(source, lambda done: None)

    def batch(self, sequences: int, start: int, count: int) -> Batch:
        import numpy as np
        from languagepipes_node.model.batch import Batch

        def column(values: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
            return np.array(values, dtype=np.int32)

        held = -(-(start + count) // BLOCK_TOKENS)
        return Batch(
            counts=column([count] * sequences),
            starts=column([start] * sequences),
            run_counts=column([1] * sequences),
            runs=np.array([[s * self.blocks_each, held] for s in range(sequences)], dtype=np.int32),
            rows=column([s * count + count - 1 for s in range(sequences)]),
        )

    def step(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Packed tokens → the next token of each sequence."""
        import torch
        from languagepipes_node.model import kernels

        kernels.use_level(self.level)
        hidden = self.stage.run(self.end.front(tokens, batch), batch)
        hidden = hidden.index_select(0, torch.from_numpy(batch.rows))
        return self.end.logits(self.end.back(hidden, batch)).argmax(-1)

    def decode(self, prompt: torch.Tensor, steps: int) -> float:
        """Seconds a step, after the prompt [sequences, tokens]."""
        sequences, length = prompt.shape
        tokens = self.step(prompt.reshape(-1), self.batch(sequences, 0, length))
        begin = clock()
        for position in range(length, length + steps):
            tokens = self.step(tokens, self.batch(sequences, position, 1))
        return (clock() - begin) / steps

    def prefill(self, prompt: torch.Tensor) -> float:
        """Seconds to the first token of one prompt [1, tokens]."""
        begin = clock()
        self.step(prompt.reshape(-1), self.batch(1, 0, prompt.shape[1]))
        return clock() - begin


class Theirs:
    """transformers' generate."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        import transformers

        transformers.logging.disable_progress_bar()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def _generate(self, prompt: torch.Tensor, tokens: int) -> float:
        import torch

        begin = clock()
        self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return clock() - begin

    def decode(self, prompt: torch.Tensor, steps: int) -> float:
        return (self._generate(prompt, steps + 1) - self._generate(prompt, 1)) / steps

    def prefill(self, prompt: torch.Tensor) -> float:
        return self._generate(prompt, 1)


def compare(name: str, measured: dict[str, Callable[[], float]], repeats: int, per: int) -> None:
    """Print one row: medians and spread of each, and the ratio of the best of theirs to ours. per: tokens a run."""
    seconds: dict[str, list[float]] = {key: [] for key in measured}
    for attempt in range(repeats + 1):
        for key, run in measured.items():
            value = run()
            if attempt:  # the first warms up
                seconds[key].append(value)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    shown = "  ".join(
        f"{key} {medians[key] * 1e3:8.2f} ms ({min(values) * 1e3:.2f}-{max(values) * 1e3:.2f})"
        + (f" {per / medians[key]:6.1f} tokens/s" if per else "")
        for key, values in seconds.items()
    )
    theirs = [value for key, value in medians.items() if not key.startswith("ours")]
    ratio = f"  ratio {min(theirs) / medians['ours']:.2f}" if theirs else ""
    print(f"{name:12} {shown}{ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path, help="a directory of safetensors files, in the dtype to serve in")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--theirs", nargs="*", default=["float32", "bfloat16"], help="transformers' dtypes")
    parser.add_argument("--levels", type=int, nargs="*", default=[], help="ours at these levels too")
    parser.add_argument("--prompts", type=int, nargs="*", default=[32, 512], help="tokens of the prompts")
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 4, 16], help="sequences that decode")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: for one thread beside other work")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.cpu_time:
        global clock
        clock = time.process_time

    import torch

    torch.manual_seed(0)
    tokens = max([DECODE_PROMPT + DECODE_STEPS, *arguments.prompts]) + 64
    most = max([1, *arguments.sequences])
    levels = {"ours": None} | {f"ours, level {level}": level for level in arguments.levels}
    dtype = getattr(torch, arguments.dtype)
    contenders: dict[str, Ours | Theirs] = {
        name: Ours(arguments.model, dtype, sequences=most, tokens=tokens, level=level) for name, level in levels.items()
    }
    contenders |= {name: Theirs(arguments.model, getattr(torch, name)) for name in arguments.theirs}
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]

    def prompt(sequences: int, tokens: int) -> torch.Tensor:
        return torch.randint(10, vocabulary, (sequences, tokens))

    for count in arguments.prompts:
        ids = prompt(1, count)
        runs = {name: partial(contender.prefill, ids) for name, contender in contenders.items()}
        compare(f"prefill {count}", runs, arguments.repeats, 0)
    for count in arguments.sequences:
        ids = prompt(count, DECODE_PROMPT)
        runs = {name: partial(contender.decode, ids, DECODE_STEPS) for name, contender in contenders.items()}
        compare(f"decode {count}", runs, arguments.repeats, count)


if __name__ == "__main__":
    main()
