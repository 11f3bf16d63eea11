"""Every code that a member can end with is known to those who would start it again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from languagepipes_api.termination import FINAL_CODES, PASSING_CODES, Termination
from languagepipes_node import termination
from languagepipes_node.member import SettingsError
from languagepipes_node.model.architecture import ArchitectureError
from languagepipes_node.model.errors import ModelError
from languagepipes_node.net.errors import TlsError
from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.wire.errors import SupersededError, WireError


def leaves(base: type[Exception]) -> Iterator[type[Exception]]:
    """The classes under `base` that are raised: those without classes of their own under them."""
    below = [cls for cls in base.__subclasses__() if cls.__module__.startswith("languagepipes_node")]
    if not below:
        yield base
    for cls in below:
        yield from leaves(cls)


RAISED = {*leaves(WeightsError), *leaves(ModelError), ArchitectureError}
OURS = [SettingsError("…"), SupersededError("…"), TlsError("…"), WireError("…")]
PLAIN = [MemoryError(), ImportError(), KeyError()]
ERRNOS = [OSError(number, "…") for number in (*termination._CODES_OF_ERRNO, 0)]


def test_every_code_is_listed() -> None:
    codes = {termination.code_of(error) for error in [*OURS, *PLAIN, *ERRNOS]}
    codes |= {termination.code_of(cls("…")) for cls in RAISED}
    assert len(codes) > 20
    assert codes <= FINAL_CODES | PASSING_CODES


def test_what_the_weights_call_retriable_may_pass() -> None:
    assert {cls.__name__ for cls in leaves(WeightsError) if cls.retriable} <= PASSING_CODES  # type: ignore[attr-defined]


def test_a_message_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setenv("LANGUAGEPIPES_TERMINATION_LOG", str(log))
    termination.report("stage 1", SettingsError("tokenizer.json is\nno JSON"))
    assert Termination.parse(log.read_text()) == Termination("InvalidSettings", "tokenizer.json is no JSON")
