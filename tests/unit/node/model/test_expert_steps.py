"""Mixtures of experts in whole native steps: routed as transformers routes, and no row depends on another."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from languagepipes_api.plan import LayerRange, Quantization
from languagepipes_node.model import kernels
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.facts import read_facts
from languagepipes_node.model.linear import WHOLE, always
from languagepipes_node.model.matrix import Matrix
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.directory import SafetensorsDirectory
from safetensors.torch import load_file, save_file
from support.models import MODELS, ParityModel
from support.native import levels
from support.quantised_models import QUANTISABLE, config_of, quantise_directory
from support.replica import SPLITS, Replica, Running

pytestmark = pytest.mark.native


@pytest.fixture(params=levels(), ids=kernels.LEVELS.get)
def every_level(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels.use_level(request.param)
    yield
    kernels.use_level(None)


def model_with(path: Path, edit: Callable[[torch.Tensor], None], **sizes: Any) -> ParityModel:
    """A Qwen3-MoE whose routers [experts, hidden] were edited."""
    config = MODELS["qwen3_moe"]()
    config.update(sizes)
    torch.manual_seed(config.num_experts)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(".mlp.gate.weight"):
            edit(tensor)
    save_file(tensors, path / "model.safetensors")
    return ParityModel.read(path)


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


# torch.topk takes one way up to a 64th of the experts, another above.
@pytest.mark.parametrize(
    ("experts", "top_k", "normalise"),
    [(6, 2, True), (13, 5, False), (40, 8, True), (40, 40, False), (64, 1, False), (130, 2, True)],
)
def test_experts_with_equal_probabilities_are_chosen_as_transformers_chooses(
    experts: int, top_k: int, normalise: bool, tmp_path: Path
) -> None:
    def make_ties(router: torch.Tensor) -> None:
        router[torch.rand(experts) < 0.7] = 0

    sizes = {"num_experts": experts, "num_experts_per_tok": top_k, "norm_topk_prob": normalise}
    model = model_with(tmp_path, make_ties, **sizes, moe_intermediate_size=8)
    prompt = model.prompt(40)
    replica = Replica(model, SPLITS[2], compute=always(WHOLE))
    assert error(replica.logits(prompt, chunk=33), model.logits(prompt)) < 2e-5


def test_all_rows_may_take_the_same_experts(every_level: None, tmp_path: Path) -> None:
    """More rows of one expert than are multiplied at a time, and experts that nobody takes."""

    def all_but_one_alike(router: torch.Tensor) -> None:
        router[1:] = 0

    model = model_with(tmp_path, all_but_one_alike)
    prompt = model.prompt(400)
    replica = Replica(model, SPLITS[2], compute=always(WHOLE))
    assert error(replica.logits(prompt), model.logits(prompt)) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_has_the_same_numbers_in_every_company_and_by_any_number_of_threads(
    dtype: torch.dtype, every_level: None, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named("qwen3_moe")
    prompts = [model.prompt(3 + place % 5, seed=place) for place in range(80)]

    replica = Replica(model, SPLITS[2], dtype=dtype, compute=always(WHOLE))

    def decode(company: int, threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        sequences = [Running() for _ in prompts[:company]]
        replica.step([(s, p[:-1], []) for s, p in zip(sequences, prompts, strict=False)])
        rows = replica.step([(s, p[-1:], [0]) for s, p in zip(sequences, prompts, strict=False)])
        for sequence in sequences:
            replica.end_sequence(sequence)
        return rows

    together = decode(80, threads=1)
    for company in (1, 2, 4, 5, 16, 33, 65):
        assert torch.equal(decode(company, threads=1 + company % 3), together[:company]), company


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_planner_counts_the_bytes_that_packed_experts_hold(
    mode: Quantization | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = QUANTISABLE["qwen3_moe"]()
    config.update({"num_experts": 32})  # sizes that are whole panels, as large models have
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" if mode is None else quantise_directory(tmp_path / "model", tmp_path / mode, mode)
    facts = read_facts(config_of(tmp_path / "model"), SafetensorsDirectory(tmp_path / "model").index, "r", 1)
    before = {id(matrix) for matrix in matrices()}
    stack = LayerStack(
        Architecture.from_config(config_of(path)), LayerRange(0, 2), dtype=dtype, device=torch.device("cpu"),
        block_tokens=16, blocks=4, compute=always(WHOLE),
    )  # fmt: skip
    stack.load(SafetensorsDirectory(path), lambda done: None)
    tensors = [
        tensor
        for matrix in matrices()
        if id(matrix) not in before
        for tensor in (matrix.data, matrix.scales)
        if tensor is not None
    ]
    # Packed matrices are views of what was read, or stand alone.
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    shares = facts.quantised[mode].layers[:2] if mode else ()
    plain = sum(layer.parameters for layer in facts.layers[:2]) - sum(share.parameters for share in shares)
    planned = sum(share.nbytes for share in shares) + plain * dtype.itemsize
    assert stack.weight_bytes == planned
    norms = 2 * (2 * config.hidden_size + 2 * config.head_dim) * dtype.itemsize
    assert sum(memory.values()) == planned - norms


def matrices() -> list[Matrix]:
    """All that are alive."""
    return [found for found in gc.get_objects() if type(found) is Matrix]


def test_a_row_that_is_not_finite_spoils_no_other(model_named: Callable[[str], ParityModel]) -> None:
    model = model_named("qwen3_moe")
    replica = Replica(model, SPLITS[2], compute=always(WHOLE))
    prompts = [model.prompt(4, seed=place) for place in range(6)]

    def decode(spoilt: int | None) -> torch.Tensor:
        stage, sequences = replica.stages[0], [Running() for _ in prompts]
        run = stage.run

        def spoil(hidden: torch.Tensor, batch: Any) -> torch.Tensor:
            if spoilt is not None:
                hidden = hidden.clone()
                hidden[4 * spoilt] = torch.nan
            return run(hidden, batch)

        stage.run = spoil  # type: ignore[method-assign]
        rows = replica.step([(s, p, [3]) for s, p in zip(sequences, prompts, strict=True)])
        stage.run = run  # type: ignore[method-assign]
        for sequence in sequences:
            replica.end_sequence(sequence)
        replica.free.sort()
        return rows

    whole, spoilt = decode(None), decode(2)
    assert torch.isnan(spoilt[2]).all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(spoilt[others], whole[others])
