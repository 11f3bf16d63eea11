"""`python -m languagepipes_node fork-server FD`: imports torch and what stages and End Model run, once, and forks
members for `languagepipes up`, which asks over the socket FD (`languagepipes_api.fork_server`).

A member that was forked is what one would be that was started with its settings: it leads a session, has its own
environment, directory, log and random state, and `up` is its parent, since `up` takes orphans (PR_SET_CHILD_SUBREAPER,
prctl(2)) and the process between them ends at once. So members live on where this server ends.

A fork takes only the thread that calls it along, so there may be no other: nothing is computed here, and libraries
that start threads when they are imported are kept from it. A CUDA context does not survive a fork: members with a
GPU are not forked.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from languagepipes_api.fork_server import ForkAnswer, ForkRequest

from languagepipes_node import process

# What a member imports before it serves. One that is missing here is imported by each member: correct, and slower.
MODULES = (
    "torch",
    "languagepipes_node.termination",
    "languagepipes_node.stage.main",
    "languagepipes_node.stage.loop",
    "languagepipes_node.model.stack",
    "languagepipes_node.wire.stage_communicator",
    "languagepipes_node.end_model.main",
    "languagepipes_node.end_model.text",
    "languagepipes_node.end_model.engine",
    "languagepipes_node.end_model.openai.app",
    "languagepipes_node.end_model.openai.server",
    "languagepipes_node.end_model.vllm_metrics",
    "languagepipes_node.model.end",
    "languagepipes_node.wire.end_model_communicator",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
)
PARENT_GONE = 113

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
# Fields 48 and 49 of proc_pid_stat(5), counted behind the name.
_ARGUMENTS_START, _ARGUMENTS_END = 48 - 3, 49 - 3


def serve(arguments: Sequence[str]) -> int | None:
    """Fork what is asked for until `up` is gone: the exit status. None: this process is a new member now.

    Raises ImportError like a member that lacks a module.
    """
    channel = socket.socket(fileno=int(arguments[0]))
    process.limit_threads(None)  # as members of `up` do, who share the machine
    _import_all()
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        channel.sendall(ForkAnswer(error=f"{threads} threads run after the imports").to_line())
        return 1
    # What was imported stays in pages that all members share: a collection would write into each object.
    gc.collect()
    gc.freeze()
    try:
        channel.sendall(ForkAnswer().to_line())
        requests = channel.makefile("rb")
        for line in requests:
            if _fork(ForkRequest.from_line(line), channel, requests):
                return None
    except (BrokenPipeError, ConnectionResetError):
        pass
    return 0


def _import_all() -> None:
    # OpenBLAS starts its threads when numpy is imported. Nothing here multiplies with numpy. torch may bring another
    # OpenBLAS (on ARM), which is to see all CPUs.
    with _variable("OPENBLAS_NUM_THREADS", "1"):
        importlib.import_module("numpy")
    for name in MODULES:
        importlib.import_module(name)


def _fork(request: ForkRequest, channel: socket.socket, requests: BinaryIO) -> bool:
    """Whether this is the new member. Otherwise the request is answered."""
    number, writes_number = os.pipe()
    start, writes_start = os.pipe()
    try:
        between = os.fork()
    except OSError as error:
        for descriptor in (number, writes_number, start, writes_start):
            os.close(descriptor)
        channel.sendall(ForkAnswer(error=error.strerror or str(error)).to_line())
        return False
    if between == 0:
        try:
            member = os.fork()
        except OSError:
            os._exit(1)
        if member:
            os._exit(0)  # the member is an orphan now, and `up` its parent
        requests.close()
        channel.close()
        os.close(number)
        os.close(writes_start)
        _become(request, writes_number, start)
        return True
    os.close(writes_number)
    os.close(start)
    os.waitpid(between, 0)
    with open(number, "rb") as file:
        said = file.read()
    answer = ForkAnswer(int(said)) if said else ForkAnswer(error="no second process could be made")
    try:
        channel.sendall(answer.to_line())
        # Only now, so that no member runs that `up` was not told of: without this byte it ends.
        with contextlib.suppress(BrokenPipeError):
            os.write(writes_start, b"\n")
    finally:
        os.close(writes_start)
    return False


def _become(request: ForkRequest, writes_number: int, start: int) -> None:
    """Make of this fork what `up` makes of a process that it starts itself. Ends the process if `up` is gone."""
    os.setsid()
    os.write(writes_number, b"%d" % os.getpid())
    os.close(writes_number)
    if not os.read(start, 1):
        os._exit(PARENT_GONE)
    os.close(start)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that died before prctl took hold would never be noticed otherwise.
    if os.getppid() != request.parent:
        os._exit(PARENT_GONE)
    log = os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    # Python's own generator is seeded anew in a fork, numpy's is not; torch's begins with the same seed everywhere.
    if (generators := sys.modules.get("numpy.random")) is not None:
        generators.seed()
    libc.prctl(_PR_SET_NAME, request.name.encode()[:15], 0, 0, 0)
    with contextlib.suppress(OSError, ValueError, IndexError):
        _show_as(f"languagepipes-node {request.name}")


def _show_as(title: str) -> None:
    """Write `title`, cut to fit, where the kernel reads this process's command line from (ps, /proc/PID/cmdline)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
    if 0 < start < end:
        size = end - start
        ctypes.memmove(start, title.encode()[: size - 1].ljust(size, b"\0"), size)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
