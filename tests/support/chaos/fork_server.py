"""Starts members in milliseconds: imports once what members import, then forks for each. Runs as a process of its own.

A member's first seconds go into importing torch. A thousand restarts on two cores would be hours of it, and would tell
nothing of recovery. What runs after the fork is the member's own program, in a session and with a log of its own.

Reads one JSON object a line on standard input and answers on standard output:

    {"start": NAME, "environment": {…}, "log": PATH}  →  {"started": NAME, "pid": …}
    {"signal": NUMBER, "name": NAME}                  →  {"signalled": NAME, "pid": …}, pid null if it has ended
                                                      →  {"ended": NAME, "pid": …, "status": …}, at any time
    end of input                                      →  SIGKILL to all members, then it ends

Only this process signals and reaps members, so that no signal reaches a stranger who got a member's process id.
`status` is as subprocess gives it: negative for a signal. It has no second thread: a fork would leave it behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import selectors
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_MODULES = (
    "languagepipes_node.end_model.engine",
    "languagepipes_node.end_model.openai.app",
    "languagepipes_node.end_model.openai.server",
    "languagepipes_node.end_model.text",
    "languagepipes_node.end_model.main",
    "languagepipes_node.model.stack",
    "languagepipes_node.model.end",
    "languagepipes_node.stage.loop",
    "languagepipes_node.stage.main",
    "languagepipes_node.wire.end_model_communicator",
    "languagepipes_node.wire.stage_communicator",
)


class Server:
    """`run` returns in a member's process alone, which then runs the member's program."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_writer)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if self._wake_reader in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_reader, 4096)
                    self._reap()
                if 0 not in ready:
                    continue
                data = os.read(0, 65536)
                if not data:
                    self._end()
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    if "start" in command:
                        if self._start(command):
                            break
                    else:
                        self._signal(command)
                else:
                    continue
                break  # a member from here on

    def _start(self, command: dict[str, Any]) -> bool:
        """True in the member."""
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._pids[command["start"]] = pid
            self._answer(started=command["start"], pid=pid)
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        log = os.open(command["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for end in (log, nothing, self._wake_reader, self._wake_writer):
            os.close(end)
        os.environ.clear()
        os.environ.update(command["environment"])
        return True

    def _signal(self, command: dict[str, Any]) -> None:
        self._reap()
        pid = self._pids.get(command["name"])
        if pid is not None:
            os.kill(pid, command["signal"])
        self._answer(signalled=command["name"], pid=pid)

    def _reap(self) -> None:
        for name, pid in list(self._pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self._pids[name]
                self._answer(ended=name, pid=pid, status=os.waitstatus_to_exitcode(status))

    def _end(self) -> None:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids.values():
            os.waitpid(pid, 0)
        os._exit(0)

    def _answer(self, **fields: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more: the end of input comes next
            os.write(1, json.dumps(fields).encode() + b"\n")


def _compute_in_float32() -> None:
    """Let members choose among the ways that compute in float32, whatever the dtype of weights, keys and values.

    A member measures at each start which way is fastest. With weights in bfloat16 one that computes in bfloat16, and
    then starts again and does not, moves log-probabilities by up to 0.6: far more than the company in a frame does
    (see comparison.py). A bound as wide as that would hide a lost key.
    """
    import torch
    from languagepipes_node.model import attention_plan, choices

    every = choices.candidates
    choices.candidates = lambda storage, **more: [way for way in every(storage, **more) if way.dtype == torch.float32]
    attention_plan.quick_products = lambda dtype, device: False


def main() -> int:
    # Before torch is imported, as languagepipes_node.process does it: these members have one thread each.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GOMP_SPINCOUNT": "1000"}
    import importlib

    for module in _MODULES:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a module started a thread; members would miss it"
    _compute_in_float32()
    gc.collect()
    gc.freeze()  # members share these pages
    server = Server()
    server._answer(ready=True)
    server.run()

    from languagepipes_node.__main__ import main as member

    return member([])


if __name__ == "__main__":
    sys.exit(main())
