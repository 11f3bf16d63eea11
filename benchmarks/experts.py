"""Layers of a mixture of experts: whole native steps against torch's calls for each expert, in one process, in turns.

    python benchmarks/experts.py --threads 1 --cpu-time

Random weights of a small Qwen3-MoE shape. Each row is a sequence of its own with a few tokens before it, and rows
differ, so that they take different experts. The other way is the fastest of those that torch's layers have for the
dtype (`model.choices.candidates`, native products among them), which is what members chose by measuring before whole
steps took experts. Prints medians, their spread and the ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from languagepipes_node.model.stack import LayerStack

CONTEXT = 32
BLOCK_TOKENS = 64


def config(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model_type": "qwen3_moe",
        "hidden_size": arguments.hidden,
        "intermediate_size": 3 * arguments.hidden,
        "moe_intermediate_size": arguments.intermediate,
        "num_experts": arguments.experts,
        "num_experts_per_tok": arguments.top_k,
        "norm_topk_prob": True,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 256,
        "max_position_embeddings": 4096,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--level", type=int, help="at most this instruction set of model.kernels")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--intermediate", type=int, default=384)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="processor time: for one thread beside other work")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    import numpy as np
    import torch
    from languagepipes_api.plan import LayerRange
    from languagepipes_node.model import kernels
    from languagepipes_node.model.architecture import Architecture
    from languagepipes_node.model.batch import Batch
    from languagepipes_node.model.choices import candidates
    from languagepipes_node.model.linear import WHOLE, Compute, always
    from languagepipes_node.model.names import layer_parts
    from languagepipes_node.model.stack import LayerStack
    from languagepipes_node.weights.source import TensorInfo

    torch.set_num_threads(arguments.threads)
    kernels.use_level(arguments.level)
    dtype = getattr(torch, arguments.dtype)
    architecture = Architecture.from_config(config(arguments))
    layers = LayerRange(0, arguments.layers)
    shapes = {part.name: part.shape for layer in range(arguments.layers) for part in layer_parts(architecture, layer)}

    draw = torch.Generator().manual_seed(0)
    drawn = {
        name: ((torch.randn(shape, generator=draw) * shape[-1] ** -0.5) if len(shape) > 1 else torch.ones(shape)).to(
            dtype
        )
        for name, shape in shapes.items()
    }

    class RandomWeights:
        """A TensorSource of what was drawn."""

        def names(self) -> Iterator[str]:
            return iter(drawn)

        def info(self, name: str) -> TensorInfo:
            return TensorInfo(name, arguments.dtype, shapes[name], drawn[name].nbytes)

        def read_into(self, name: str, destination: memoryview) -> None:
            destination[:] = drawn[name].reshape(-1).view(torch.uint8).numpy().data

        def read_rows_into(self, name: str, first_row: int, rows: int, destination: memoryview) -> None:
            self.read_into(name, destination)  # every tensor is in the dtype that it is asked for, and so read whole

        def file(self, name: str) -> bytes:
            raise KeyError(name)

    def stack(compute: Compute) -> LayerStack:
        made = LayerStack(
            architecture,
            layers,
            dtype=dtype,
            device=torch.device("cpu"),
            block_tokens=BLOCK_TOKENS,
            blocks=max(arguments.rows),
            compute=compute,
        )
        made.load(RandomWeights(), lambda done: None)
        return made

    ways = {str(way): stack(always(way)) for way in (WHOLE, *candidates(dtype))}
    print(f"{arguments.dtype}, {kernels.LEVELS[kernels.library()[1]]}, {arguments.threads} threads", flush=True)

    def batch(rows: int, start: int, count: int) -> Batch:
        def column(values: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
            return np.array(values, dtype=np.int32)

        runs = np.array([[sequence, 1] for sequence in range(rows)], dtype=np.int32)
        wanted = column(list(range(rows * count)))
        return Batch(column([count] * rows), column([start] * rows), column([1] * rows), runs, wanted)

    for rows in arguments.rows:
        draw = torch.Generator().manual_seed(rows)
        before = torch.randn(rows * CONTEXT, arguments.hidden, generator=draw).to(dtype)
        hidden = torch.randn(rows, arguments.hidden, generator=draw).to(dtype)
        seconds: dict[str, list[float]] = {name: [] for name in ways}

        def run(made: LayerStack, rows: int = rows, hidden: torch.Tensor = hidden) -> float:
            begin = clock()
            made.run(hidden.clone(), batch(rows, CONTEXT, 1))
            return clock() - begin

        for made in ways.values():
            made.run(before.clone(), batch(rows, 0, CONTEXT))
            run(made)
        for _ in range(arguments.repeats):
            for name, made in ways.items():
                seconds[name].append(run(made))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        shown = "  ".join(
            f"{name} {medians[name] * 1e3:.2f} ms ({min(values) * 1e3:.2f}-{max(values) * 1e3:.2f})"
            for name, values in seconds.items()
        )
        others = min(value for name, value in medians.items() if name != str(WHOLE))
        print(f"{rows:3} rows  {shown}  ratio {others / medians[str(WHOLE)]:.2f}", flush=True)


if __name__ == "__main__":
    main()
