"""SmolLM2 as `languagepipes up` runs it, and real child processes to supervise, small enough to start in a moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from languagepipes_operator.cli.up.processes import Command
from support.paths import ROOT, SMOLLM2
from support.up import Up, pipe


@pytest.fixture(scope="session")
def model_file() -> Path:
    """SmolLM2-135M-Instruct, real weights."""
    assert SMOLLM2.exists(), f"{SMOLLM2.relative_to(ROOT)} is not there: run `make model`"
    return SMOLLM2


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


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Command]:
    """`program(name, source)`: a command that runs Python source as a member."""

    def make(name: str, source: str) -> Command:
        return Command(
            name=name,
            argv=(sys.executable, "-I", "-S", "-c", source),
            environment={**os.environ, "LANGUAGEPIPES_TERMINATION_LOG": str(tmp_path / "termination" / name)},
            directory=tmp_path,
            log=tmp_path / "logs" / f"{name}.log",
            termination_log=tmp_path / "termination" / name,
        )

    return make
