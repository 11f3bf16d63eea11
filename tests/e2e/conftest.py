from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from up import Up, pipe

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def model_file() -> Path:
    """SmolLM2-135M-Instruct, real weights."""
    assert MODEL.exists(), f"{MODEL.relative_to(ROOT)} is not there: run `make model`"
    return MODEL


@pytest.fixture(scope="module")
def smollm2(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """SmolLM2 in float32 over an End Model and three stages, as `languagepipes up` runs it."""
    resource = pipe(
        f"file://{model_file}",
        name="smollm2",
        model={"dtype": "float32", "maxContextLength": 1024},
        endModel={"localLayers": 2},
    )
    with Up(resource, tmp_path_factory.mktemp("smollm2")) as up:
        yield up
