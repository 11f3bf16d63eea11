from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import TinyModel


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Makes each family's model once."""
    made: dict[str, TinyModel] = {}

    def get(family: str) -> TinyModel:
        if family not in made:
            path: Path = tmp_path_factory.mktemp(family.replace(" ", "-"))
            made[family] = TinyModel.make(family, path)
        return made[family]

    return get
