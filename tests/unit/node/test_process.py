"""What a member does to its own process."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from languagepipes_node import process


class Anything:
    """Looked at by the garbage collector."""


def test_collections_do_not_look_at_what_was_made_before() -> None:
    before = Anything()
    try:
        process.keep_out_of_collections()
        after = Anything()
        looked_at = [found for found in gc.get_objects() if isinstance(found, Anything)]
    finally:
        gc.unfreeze()
    assert looked_at == [after]
    assert any(found is before for found in gc.get_objects())


def test_threads_are_limited_also_where_torch_was_imported_before_as_in_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    before = torch.get_num_threads()
    try:
        assert process.limit_threads(3) == 3
        assert torch.get_num_threads() == 3
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert os.environ["GOMP_SPINCOUNT"] == "5"
    finally:
        torch.set_num_threads(before)
