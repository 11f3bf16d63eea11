"""Models are made once a session and shared; each test makes the replica that it needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from support.parity_models import MODELS, ParityModel


@pytest.fixture(scope="session")
def model_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ParityModel]:
    transformers.logging.disable_progress_bar()
    made: dict[str, ParityModel] = {}

    def get(name: str) -> ParityModel:
        if name not in made:
            made[name] = ParityModel.make(name, tmp_path_factory.mktemp("model"))
        return made[name]

    return get


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, model_named: Callable[[str], ParityModel]) -> ParityModel:
    """Every model in turn."""
    return model_named(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
