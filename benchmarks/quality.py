"""What quantisation does to a model's answers: perplexity on a fixed text, and how often the likeliest token stays so.

    python -m benchmarks.quality [--model FILE.gguf] [--off-grid] [--threads N]

Each mode's weights are made by the store's own code, and the layers are the members' own, in one process and in chunks
of a frame. The reference is the same model in float32. The text is the beginning of Alice's Adventures in Wonderland
(1865, public domain), in windows of 512 tokens.

--off-grid: SmolLM2's file is Q4_1 already, so its values lie on a grid of 16 that int4 finds again. With this, half a
step of noise, uniform, is put on every value of a layer's matrices first, and the reference has it too: what 16-bit
weights meet.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from languagepipes_api.plan import LayerRange, Quantization
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.end import EndLayers
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.gguf_convert import convert
from languagepipes_node.weights.quantise import quantise_model
from tokenizers import Tokenizer

from benchmarks.models import GGUF

TEXT = Path(__file__).with_name("quality_text.txt")
_WINDOW, _FRAME, _BLOCK_TOKENS = 512, 256, 64
CASES: tuple[tuple[str, torch.dtype, Quantization], ...] = (
    ("float32", torch.float32, "none"),
    ("bfloat16", torch.bfloat16, "none"),
    ("int8", torch.bfloat16, "int8"),
    ("int4", torch.bfloat16, "int4"),
    ("asStored", torch.bfloat16, "asStored"),
)


@dataclass(frozen=True)
class Quality:
    """perplexity: of the text. agreement: of positions, how many have the reference's likeliest token. divergence: the
    mean Kullback-Leibler divergence from the reference, in nats.
    """

    name: str
    weight_bytes: int
    perplexity: float
    agreement: float
    divergence: float


def log_probabilities(directory: Path, dtype: torch.dtype, tokens: list[int]) -> tuple[torch.Tensor, int]:
    """float32 [len(tokens), vocabulary], window by window, and the resident bytes of all weights."""
    source = SafetensorsDirectory(directory)
    architecture = Architecture.from_config(json.loads(source.file("config.json")))
    count = architecture.layer_count
    blocks = _WINDOW // _BLOCK_TOKENS
    model = EndLayers(
        architecture,
        LayerRange(0, count),
        LayerRange(count, count),
        dtype=dtype,
        device=torch.device("cpu"),
        block_tokens=_BLOCK_TOKENS,
        blocks=blocks,
    )
    model.load(source, lambda done: None)

    def column(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return np.array(values, dtype=np.int32)

    found = []
    for begin in range(0, len(tokens), _WINDOW):
        window = tokens[begin : begin + _WINDOW]
        for start in range(0, len(window), _FRAME):
            piece = window[start : start + _FRAME]
            runs = np.array([[0, -(-(start + len(piece)) // _BLOCK_TOKENS)]], dtype=np.int32)
            batch = Batch(column(len(piece)), column(start), column(1), runs, column(*range(len(piece))))  # type: ignore[arg-type]
            logits = model.logits(model.back(model.front(torch.tensor(piece), batch), batch))
            found.append(logits.log_softmax(-1))
    return torch.cat(found), model.weight_bytes


def compare(name: str, scores: torch.Tensor, reference: torch.Tensor, tokens: list[int], nbytes: int) -> Quality:
    """Positions whose next token lies in the same window count."""
    places = torch.tensor([place for place in range(len(tokens) - 1) if (place + 1) % _WINDOW])
    following = torch.tensor(tokens)[places + 1]
    losses = -scores[places, following]
    same = scores[places].argmax(-1) == reference[places].argmax(-1)
    divergence = (reference[places].exp() * (reference[places] - scores[places])).sum(-1).mean()
    return Quality(name, nbytes, float(losses.mean().exp()), float(same.float().mean()), float(divergence))


def _off_grid(directory: Path, output: Path) -> Path:
    """The float32 model with half a Q4_1 step of uniform noise on its layers' matrices."""
    from languagepipes_node.weights.quantised import Q4, is_matrix
    from safetensors.numpy import load_file, save_file

    random = np.random.default_rng(0)
    tensors = load_file(directory / "model.safetensors")
    for name, values in tensors.items():
        if name.startswith("model.layers.") and is_matrix(name, values.shape):
            groups = values.reshape(len(values), -1, Q4.group)
            steps = (groups.max(2, keepdims=True) - groups.min(2, keepdims=True)) / 15
            noise = random.uniform(-0.5, 0.5, groups.shape).astype(np.float32)
            tensors[name] = (groups + noise * steps).reshape(values.shape)
    output.mkdir()
    for file in directory.iterdir():
        if file.suffix == ".json":
            (output / file.name).write_bytes(file.read_bytes())
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=GGUF)
    parser.add_argument("--off-grid", action="store_true")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        plain = convert(options.model, root / "plain", dtype="float32")
        if options.off_grid:
            plain = _off_grid(plain, root / "off-grid")
        tokens = Tokenizer.from_file(str(plain / "tokenizer.json")).encode(TEXT.read_text()).ids
        print(f"{len(tokens)} tokens in windows of {_WINDOW}; {torch.get_num_threads()} threads", flush=True)
        print(
            "| weights | MiB | perplexity | same likeliest token | divergence, nats |\n| --- | --- | --- | --- | --- |"
        )
        reference: torch.Tensor | None = None
        for name, dtype, mode in CASES:
            directory = plain
            if mode == "asStored":
                if options.off_grid:
                    continue
                directory = convert(options.model, root / mode, dtype="bfloat16", quantization=mode)
            elif mode != "none":
                source = SafetensorsDirectory(plain)
                paths = {file: plain / file for file in source.index.files}
                directory = quantise_model(paths, source.index, root / mode, quantization=mode)
            scores, nbytes = log_probabilities(directory, dtype, tokens)
            reference = scores if reference is None else reference
            of = compare(name, scores, reference, tokens, nbytes)
            print(
                f"| {of.name} | {of.weight_bytes / 2**20:.1f} | {of.perplexity:.3f} | {100 * of.agreement:.2f} % "
                f"| {of.divergence:.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
