from __future__ import annotations

import functools
import threading
from collections.abc import Iterator

import pytest
from support.loopback_ring import LoopbackRing
from support.toy_engine import MakeRig, Rig, RunThread, make_rig_of


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Makes engines over rings of toy layers; see toy_rig.py."""
    rings: list[LoopbackRing] = []
    yield functools.partial(make_rig_of, rings)
    for ring in rings:
        ring.close()


@pytest.fixture
def run_thread() -> Iterator[RunThread]:
    """Runs an engine in a thread, until the test is over."""
    started: list[tuple[Rig, threading.Thread]] = []

    def start(rig: Rig) -> threading.Thread:
        thread = threading.Thread(target=rig.engine.run_forever, daemon=True)
        started.append((rig, thread))
        thread.start()
        return thread

    yield start
    for rig, thread in started:
        rig.engine.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()
