"""A working thread that hangs is noticed, one that waits is not; and errors have stable codes."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from languagepipes_node import termination
from languagepipes_node.health import MemberState
from languagepipes_node.member import SettingsError
from languagepipes_node.model.errors import OutOfMemory, WrongWeights
from languagepipes_node.net.errors import TlsError
from languagepipes_node.stage import loop
from languagepipes_node.weights.errors import BrokenFile, StoreFailed
from languagepipes_node.wire.errors import SupersededError

# Ends with 0 once its main thread has heard of a signal that the kernel gave to another thread, and by SIGALRM if not.
HEARS = """
import signal, threading, time
from languagepipes_node import process
leaving = process.leave_on_signals()
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
threading.Timer(0.2, lambda: signal.pthread_kill(other.ident, signal.SIGTERM)).start()
signal.alarm(20)
process.wait_for_signal(leaving)
"""


def test_a_signal_is_heard_whichever_thread_the_kernel_gives_it_to() -> None:
    assert subprocess.run([sys.executable, "-c", HEARS], check=False, timeout=60).returncode == 0


def test_a_thread_that_takes_longer_than_it_announced_fails_liveness() -> None:
    state = MemberState("stage", state="ready")
    assert state.alive  # before any work, and for as long as nothing is expected
    state.watchdog.expect("computing a frame", 0.05)
    assert state.alive
    time.sleep(0.1)
    assert not state.alive
    assert state.error.startswith("computing a frame makes no progress")
    state.watchdog.expect("the ring thread", 60)
    assert state.alive
    state.watchdog.expect("the ring thread", -1)
    state.watchdog.rest()
    assert state.alive


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("LANGUAGEPIPES_DEVICE: …"), "InvalidSettings"),
        (WrongWeights("…"), "WrongWeights"),
        (OutOfMemory("…"), "OutOfMemory"),
        (BrokenFile("…"), "BrokenFile"),
        (StoreFailed("…", reason="GatedRepository"), "GatedRepository"),
        (SupersededError("…"), "Superseded"),
        (TlsError("…"), "CertificatesUnusable"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "CannotListen"),
        (OSError(errno.ENOSPC, "No space left on device"), "NoSpace"),
        (MemoryError(), "OutOfMemory"),
        (ModuleNotFoundError("No module named 'transformers'", name="transformers"), "MissingModule"),
        (ImportError("cannot import name 'Qwen3' from 'transformers'"), "MissingModule"),
        (ValueError("what the user wrote"), "InternalError"),
    ],
)
def test_every_fatal_error_has_a_stable_code(error: Exception, code: str) -> None:
    assert termination.code_of(error) == code


def test_a_missing_module_is_named_with_the_remedy() -> None:
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module("no_such_module_at_all")
    assert termination.sentence_of(raised.value) == (
        "the node image lacks the Python module no_such_module_at_all: "
        "use an image built from this version's Dockerfile.node"
    )
    with pytest.raises(ImportError) as broken:
        exec("from languagepipes_node.health import Nothing")
    assert "cannot import name 'Nothing' from 'languagepipes_node.health'" in termination.sentence_of(broken.value)


def test_termination_messages_are_short_one_line_and_quote_no_unknown_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("LANGUAGEPIPES_TERMINATION_LOG", str(log))
    termination.report("stage 1", BrokenFile("no file, no words"))
    assert not log.exists()
    log.write_text("older words")
    termination.report("stage 1", ValueError("what the user wrote"))
    assert log.read_text() == "InternalError: ValueError; the log has the traceback"
    termination.report("stage 1", BrokenFile("model.safetensors:\n" + "é" * 5000))
    assert log.read_text().startswith("BrokenFile: model.safetensors: éé")
    assert log.stat().st_size <= 2048
    assert "what the user wrote" not in capsys.readouterr().err


class OneFrame:
    """A member with one frame to compute."""

    def __init__(self) -> None:
        self.frames = [
            SimpleNamespace(hidden=bytearray(4 * 8), batch=SimpleNamespace(runs=np.zeros((1, 2), dtype=np.int32)))
        ]

    def receive(self, timeout_seconds: float) -> Any:
        time.sleep(0.01)
        return self.frames.pop() if self.frames else None

    def computes(self, inbound: Any) -> bool:
        return True

    def rows_forward(self, inbound: Any) -> int:
        return 1

    def forward(self, inbound: Any, hidden: Any, busy_microseconds: int) -> None:
        pass


def test_a_stage_whose_compute_hangs_fails_liveness_and_one_that_idles_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "COMPUTING_SECONDS", 0.3)
    monkeypatch.setattr(loop, "WAITING_SECONDS", 0.3)
    going_on, stopping, state = threading.Event(), threading.Event(), MemberState("stage", state="ready")

    def hang(hidden: torch.Tensor, batch: Any) -> torch.Tensor:
        going_on.wait(20)
        return hidden

    stack = SimpleNamespace(device=torch.device("cpu"), run=hang)
    stage = loop.StageLoop(
        stack,
        OneFrame(),
        hidden_size=8,
        dtype=torch.float32,
        rows_only=False,
        watchdog=state.watchdog,  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=stage.run, args=(stopping,))
    thread.start()
    try:
        time.sleep(0.1)
        assert state.alive
        time.sleep(0.5)
        assert state.error.startswith("computing a frame makes no progress")
        going_on.set()
        time.sleep(0.6)  # idle for longer than any budget
        assert state.alive
    finally:
        going_on.set()
        stopping.set()
        thread.join(timeout=10)
