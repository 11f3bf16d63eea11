from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from support.loopback_ring import LoopbackRing
from support.toy_engine import MakeRig, make_rig_of


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Makes engines over rings of toy layers; see toy_rig.py."""
    rings: list[LoopbackRing] = []
    yield functools.partial(make_rig_of, rings)
    for ring in rings:
        ring.close()
