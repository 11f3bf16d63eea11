"""Real child processes to supervise, small enough to start in a moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from languagepipes_operator.local.processes import Command


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Command]:
    """`program(name, source)`: a command that runs Python source as a member."""

    def make(name: str, source: str) -> Command:
        return Command(
            name=name,
            argv=(sys.executable, "-I", "-S", "-c", source),
            environment=dict(os.environ),
            directory=tmp_path,
            log=tmp_path / "logs" / f"{name}.log",
        )

    return make
