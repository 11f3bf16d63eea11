"""Layers with quantised matrices compute what transformers computes with the values that these stand for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from languagepipes_api.plan import LayerRange, Quantization
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.errors import WrongWeights
from languagepipes_node.model.facts import read_facts
from languagepipes_node.model.linear import Arithmetic, Compute, Product, always, project
from languagepipes_node.model.quantised import QuantisedWeight, StackedWeight, Weight
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.quantised import Q4, Q8_OF_16, quantise
from safetensors.numpy import load_file, save_file
from support.models import LAYERS
from support.quantised_models import (
    QUANTISABLE,
    config_of,
    make,
    oracle_of,
    quantise_directory,
    rounded_activations,
)
from support.replica import Replica

TOKENS = [(7 * step) % 193 for step in range(40)]
MODES: tuple[Quantization, ...] = ("int8", "int4")
WIDENED = always(Arithmetic(torch.float32))  # each matrix, as it is used


class RoundsActivations(Arithmetic):
    """torch's way, with what is multiplied by a quantised matrix rounded as the native kernels round it."""

    @property
    def product(self) -> Product:
        def multiply(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
            return project(x if isinstance(weight, torch.Tensor) else rounded_activations(x), weight, bias)

        return multiply


def distances(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Root mean square of the difference at each token, in standard deviations of the logits."""
    return (ours - theirs).pow(2).mean(-1).sqrt() / theirs.std()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Root mean square of the difference, in standard deviations of the logits."""
    return float(distances(ours, theirs).pow(2).mean().sqrt())


def replica(path: Path, dtype: torch.dtype = torch.float32, compute: Compute | None = WIDENED) -> Replica:
    source = SafetensorsDirectory(path)
    model: Any = SimpleNamespace(architecture=Architecture.from_config(config_of(path)), source=source)
    return Replica(model, (0, 1, 4, LAYERS), dtype=dtype, compute=compute)


def stack(path: Path, dtype: torch.dtype) -> LayerStack:
    source = SafetensorsDirectory(path)
    made = LayerStack(
        Architecture.from_config(config_of(path)),
        LayerRange(0, 2),
        dtype=dtype,
        device=torch.device("cpu"),
        block_tokens=16,
        blocks=4,
        compute=always(Arithmetic(torch.float32)),
    )
    made.load(source, lambda done: None)
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUANTISABLE)
def test_a_ring_with_quantised_matrices_equals_the_unsplit_model_with_their_values(
    name: str, mode: Quantization, tmp_path: Path
) -> None:
    model = make(name, tmp_path / "model")
    quantised = quantise_directory(tmp_path / "model", tmp_path / mode, mode)
    with torch.inference_mode():
        expected = oracle_of(model, quantised)(torch.tensor([TOKENS])).logits[0]
        unquantised = model(torch.tensor([TOKENS])).logits[0]
    logits = replica(quantised).logits(TOKENS, chunk=16)
    torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)
    # Something was quantised.
    assert (expected - unquantised).abs().max() > 1e-3


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUANTISABLE)
def test_native_kernels_round_activations_and_nothing_else(
    name: str, mode: Quantization, dtype: torch.dtype, tmp_path: Path
) -> None:
    make(name, tmp_path / "model")
    quantised = quantise_directory(tmp_path / "model", tmp_path / mode, mode)
    expected = replica(quantised, dtype, always(RoundsActivations(torch.float32))).logits(TOKENS)
    ring = replica(quantised, dtype, compute=None)
    logits = ring.logits(TOKENS, chunk=16)
    # A value half-way between two whole numbers may be rounded up here and down there; KV is in dtype.
    far = distances(logits, expected)
    if dtype == torch.bfloat16 and name == "qwen3_moe":
        # A near tie between two experts may send a token to the other one.
        assert far.median() < 0.05
        assert (far > 0.15).sum() <= len(TOKENS) // 10
    else:
        assert distance(logits, expected) < (0.02 if dtype == torch.float32 else 0.15)
    # A token's numbers do not depend on how many come with it.
    alone = ring.logits(TOKENS, chunk=1)
    if dtype == torch.float32:
        assert torch.equal(logits, alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", QUANTISABLE)
def test_the_planner_counts_the_bytes_that_a_stage_holds(
    name: str, mode: Quantization, dtype: torch.dtype, tmp_path: Path
) -> None:
    make(name, tmp_path / "model")
    facts = read_facts(config_of(tmp_path / "model"), SafetensorsDirectory(tmp_path / "model").index, "r", 1)
    held = stack(quantise_directory(tmp_path / "model", tmp_path / mode, mode), dtype).weight_bytes
    shares = facts.quantised[mode].layers[:2]
    plain = sum(layer.parameters for layer in facts.layers[:2]) - sum(share.parameters for share in shares)
    assert held == sum(share.nbytes for share in shares) + plain * dtype.itemsize
    if mode == "int4" and dtype == torch.bfloat16:
        assert held <= 0.33 * dtype.itemsize * sum(layer.parameters for layer in facts.layers[:2])


def test_parts_of_one_matrix_may_be_of_different_kinds(tmp_path: Path) -> None:
    model = make("llama", tmp_path / "model")
    path = quantise_directory(tmp_path / "model", tmp_path / "mixed", "int8")
    tensors = load_file(path / "model.safetensors")
    plain = load_file(tmp_path / "model" / "model.safetensors")
    for layer in range(LAYERS):
        for projection, kind in (("q", Q4), ("v", Q8_OF_16), ("k", None)):
            name = f"model.layers.{layer}.self_attn.{projection}_proj.weight"
            del tensors[name], tensors[f"{name}.scales"]
            tensors |= {name: plain[name]} if kind is None else quantise(plain[name], kind, name).arrays(name)
    save_file(tensors, path / "model.safetensors")
    with torch.inference_mode():
        expected = oracle_of(model, path)(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(replica(path).logits(TOKENS), expected, rtol=2e-4, atol=2e-4)
    # Where one part is not quantised the stack is widened, and the other matrices meet rounded activations.
    assert distance(replica(path, compute=None).logits(TOKENS), expected) < 0.2


@pytest.mark.native
def test_stacks_of_quantised_parts_go_through_whole_native_steps(tmp_path: Path) -> None:
    make("llama", tmp_path / "model")
    path = quantise_directory(tmp_path / "model", tmp_path / "mixed", "int8")
    tensors = load_file(path / "model.safetensors")
    plain = load_file(tmp_path / "model" / "model.safetensors")
    for layer in range(LAYERS):
        for part, kind in (("self_attn.q", Q4), ("self_attn.v", Q8_OF_16), ("mlp.up", Q4)):
            name = f"model.layers.{layer}.{part}_proj.weight"
            del tensors[name], tensors[f"{name}.scales"]
            tensors |= quantise(plain[name], kind, name).arrays(name)
    save_file(tensors, path / "model.safetensors")
    rounded = replica(path, compute=always(RoundsActivations(torch.float32))).logits(TOKENS)
    assert distance(replica(path, compute=None).logits(TOKENS), rounded) < 0.02


def test_rows_of_a_stack_are_those_of_its_matrices() -> None:
    values = torch.arange(64 * 6, dtype=torch.float32).view(6, 64)
    eight = QuantisedWeight(torch.ones(3, 64, dtype=torch.int8), torch.ones(3, 2, dtype=torch.float16))
    both = StackedWeight((values, eight))
    assert both.shape == (9, 64)
    assert torch.equal(both.rows(2, 5), values[2:5])  # type: ignore[arg-type]
    across = both.rows(5, 8)
    assert isinstance(across, StackedWeight)
    assert [segment.shape[0] for segment in across.segments] == [1, 2]


def test_scales_that_do_not_fit_are_named_before_any_byte_is_read(tmp_path: Path) -> None:
    make("llama", tmp_path / "model")
    path = quantise_directory(tmp_path / "model", tmp_path / "int4", "int4")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[f"{name}.scales"] = np.zeros((64, 2), np.float16)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(WrongWeights, match=rf"{name}: its scales and minimums do not fit"):
        stack(path, torch.float32)
