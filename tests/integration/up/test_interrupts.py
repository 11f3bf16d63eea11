"""A wait ends when a signal comes, and never before for another reason."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest
from languagepipes_operator.cli.up.signals import Interrupts

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_ends_the_wait_and_is_counted(number: signal.Signals) -> None:
    with Interrupts() as interrupts:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        started = time.monotonic()
        interrupts.wait(10)
        assert time.monotonic() - started < 5
        assert interrupts.stopping
        assert interrupts.stops == 1


def test_a_child_that_ends_ends_the_wait_but_asks_for_no_stop() -> None:
    with Interrupts() as interrupts:
        child = subprocess.Popen(["sleep", "0.1"])
        started = time.monotonic()
        interrupts.wait(10)
        assert time.monotonic() - started < 5
        assert not interrupts.stopping
        child.wait()


def test_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.wait(0.01)
    assert signal.getsignal(signal.SIGINT) is before
