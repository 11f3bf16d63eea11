"""The same members on a CUDA device. Run by `make test-gpu` alone."""

from __future__ import annotations

import pytest
import torch
from support.models import ParityModel
from support.replica import SPLITS, Replica

pytestmark = [
    pytest.mark.gpu,
]


def test_greedy_tokens_on_a_gpu_equal_generate_on_the_cpu(model: ParityModel) -> None:
    prompt = model.prompt(70)
    replica = Replica(model, SPLITS[3], device=torch.device("cuda"), scattered=True)
    assert replica.generate(prompt, 16, chunk=33) == model.generate(prompt, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_on_a_gpu_stay_within_the_dtype(model: ParityModel, dtype: torch.dtype) -> None:
    prompt = model.prompt(50)
    ours = Replica(model, SPLITS[2], dtype=dtype, device=torch.device("cuda")).logits(prompt, chunk=24)
    reference, theirs = model.logits(prompt), model.logits(prompt, dtype)

    def distance(logits: torch.Tensor) -> float:
        return float((logits - reference).square().mean(-1).sqrt().median())

    assert distance(ours) < 1.5 * distance(theirs)
