"""Members' processes, from this side of the fork server: start, signal, and start again at once what ended."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORK_SERVER = Path(__file__).with_name("fork_server.py")
_READY_SECONDS = 300.0
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Program:
    """A member as it is started, each time: its environment says all."""

    environment: Mapping[str, str]
    log: Path


class Processes:
    """The members' processes. A context manager: on exit none is left. Methods may be called from any thread.

    pids, started: the present process of each member, and how often it was started.
    """

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.started: dict[str, int] = {}
        self._programs: dict[str, Program] = {}
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ready = threading.Event()
        self._lock = threading.Lock()  # one command and its answer at a time

    def __enter__(self) -> Processes:
        self._server = subprocess.Popen(
            [sys.executable, "-P", str(_FORK_SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self._read, name="members' ends", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._programs.clear()
        assert self._server.stdin is not None
        with contextlib.suppress(OSError):
            self._server.stdin.close()
        try:
            self._server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def start(self, name: str, program: Program) -> None:
        """Start it, and again whenever it ends, until `stop`."""
        if not self._ready.wait(_READY_SECONDS):
            raise AssertionError(f"the fork server is not ready after {_READY_SECONDS:g} s")
        self._programs[name] = program
        self._start(name)

    def stop(self, name: str) -> None:
        """SIGKILL, for good."""
        self._programs.pop(name, None)
        self.signal(name, 9)
        self.pids.pop(name, None)

    def signal(self, name: str, number: int) -> int | None:
        """Send it to the present process; its process id, or None if it has none at the moment."""
        pid: int | None = self._ask({"signal": int(number), "name": name})["pid"]
        return pid

    def all_ids(self) -> set[int]:
        """Of all children of the fork server, those that are no member of ours among them."""
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children")
        return {int(pid) for pid in children.read_text().split()}

    def _start(self, name: str) -> None:
        program = self._programs[name]
        command = {"start": name, "environment": dict(program.environment), "log": str(program.log)}
        self.pids[name] = self._ask(command)["pid"]
        self.started[name] = self.started.get(name, 0) + 1

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        with self._lock:
            self._server.stdin.write(json.dumps(command).encode() + b"\n")
            self._server.stdin.flush()
            return self._answers.get(timeout=_ANSWER_SECONDS)

    def _read(self) -> None:
        """Hand answers over, and start again what ended."""
        assert self._server.stdout is not None
        for line in self._server.stdout:
            answer = json.loads(line)
            if "ready" in answer:
                self._ready.set()
            elif "ended" in answer:
                # In a thread of its own: a start waits for its answer, which this thread brings.
                threading.Thread(target=self._start_again, args=(answer,), daemon=True).start()
            else:
                self._answers.put(answer)

    def _start_again(self, ended: dict[str, Any]) -> None:
        program = self._programs.get(ended["ended"])
        if program is None:
            return
        with program.log.open("a") as log:
            moment = time.strftime("%H:%M:%S")
            log.write(f"--- {moment} process {ended['pid']} ended with status {ended['status']}; started again\n")
        with contextlib.suppress(OSError, ValueError, KeyError, queue.Empty):  # the run is over
            self._start(ended["ended"])
