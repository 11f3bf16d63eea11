from __future__ import annotations

from collections.abc import Callable

import pytest
from support.models import MODELS, ParityModel


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, model_named: Callable[[str], ParityModel]) -> ParityModel:
    """Every model in turn; each test makes the replica that it needs."""
    return model_named(request.param)
