from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from languagepipes_node.end_model.loopback import LoopbackRing
from toy_rig import MakeRig, make_rig_of


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Makes engines over rings of toy layers; see toy_rig.py."""
    rings: list[LoopbackRing] = []
    yield functools.partial(make_rig_of, rings)
    for ring in rings:
        ring.close()
