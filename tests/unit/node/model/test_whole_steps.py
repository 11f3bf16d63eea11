"""A step through all layers in one native call equals the unsplit model, by every instruction set that is here.

Models that whole steps do not serve (odd head sizes, other activations) take the other way, and must be right too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from languagepipes_node.model import kernels, whole_step
from languagepipes_node.model.linear import WHOLE, always
from support.models import MODELS, ParityModel
from support.native import levels
from support.replica import SPLITS, Replica

pytestmark = pytest.mark.native


@pytest.fixture(params=levels(), ids=kernels.LEVELS.get, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels.use_level(request.param)
    yield
    kernels.use_level(None)


# Layers of transformers take neither a level nor a way to compute: test_logits has them, in chunks and in scattered
# blocks.
@pytest.mark.parametrize("name", [name for name in MODELS if "by transformers" not in name])
@pytest.mark.parametrize("scattered", [False, True])
def test_chunks_and_single_tokens_give_the_logits_of_the_unsplit_model(
    name: str, scattered: bool, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    prompt = model.prompt(41)  # two blocks and a part, and past the first block of a window
    reference = model.logits(prompt)
    replica = Replica(model, SPLITS[3], compute=always(WHOLE), scattered=scattered)
    for chunk in (18, 1):  # the second time in other blocks
        error = (replica.logits(prompt, chunk=chunk) - reference).abs().max() / reference.abs().max()
        assert error < 2e-5


def test_models_with_head_sizes_of_whole_vectors_are_served(model_named: Callable[[str], ParityModel]) -> None:
    served = [name for name in MODELS if whole_step.serves(model_named(name).architecture, torch.device("cpu"))]
    assert len(served) >= 9
    assert {"qwen3_moe", "qwen3_moe with dense layers"} <= set(served)
