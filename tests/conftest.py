"""What tests of several folders are given. Nothing here imports torch before a test asks for it."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from support.models import ParityModel


# How long an example takes, and how long it takes to make one, says how busy the machine is. Before tests are imported:
# their own settings begin with these.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure() -> None:
    """As many open files as the user may have: the soft limit is often 1,024, and rings and held ports add up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without compiled kernels their tests are deselected; with REQUIRE_NATIVE, as in CI, they run and fail.

    Tests of an instruction set that this processor does not have are deselected in any case.
    """
    native = [item for item in items if item.get_closest_marker("native")]
    if not native:
        return
    from languagepipes_node.model import kernels

    level = kernels.library()[1] if kernels.available() else 0
    if level or "REQUIRE_NATIVE" in os.environ:
        native = [item for item in native if _least_level(item) > max(level, kernels.AVX2)]
    if native:
        unwanted = set(native)
        items[:] = [item for item in items if item not in unwanted]
        config.hook.pytest_deselected(items=native)


def _least_level(item: pytest.Item) -> int:
    """The instruction set that a test needs, as `kernels.LEVELS` numbers them."""
    marker = item.get_closest_marker("native_level")
    return int(marker.args[0]) if marker else 0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Models of a few kilobytes: more threads a product only wait for each other, and for whoever runs beside them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def model_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ParityModel]:
    """Models of support/models.py by name, each made once a session."""
    import transformers
    from support.models import ParityModel

    transformers.logging.disable_progress_bar()
    made: dict[str, ParityModel] = {}

    def get(name: str) -> ParityModel:
        if name not in made:
            made[name] = ParityModel.make(name, tmp_path_factory.mktemp("model"))
        return made[name]

    return get


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model of a few kilobytes, with a tokenizer."""
    from support.llama_files import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
