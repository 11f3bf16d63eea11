"""What a member does to its own process before it handles hidden states: threads, core dumps, signals."""

from __future__ import annotations

import ctypes
import gc
import importlib
import math
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_PR_SET_DUMPABLE = 4
# Iterations that an idle OpenMP thread spins before it sleeps. Long spins let two members on the same cores stall each
# other for hundreds of milliseconds; none at all costs a wake-up for every small operator.
_SPIN_COUNT = 1000
_LOOK_SECONDS = 0.5


def cpu_limit() -> int:
    """CPUs that this process may use: the cgroup's quota (cgroup v2 cpu.max, v1 cfs_quota), at most its affinity."""
    available = len(os.sched_getaffinity(0))
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota_file).read_text().split()
            if period_file is not None:
                words.append(Path(period_file).read_text().strip())
        except OSError:
            continue
        if len(words) == 2 and words[0] not in ("max", "-1"):
            return max(1, min(available, math.ceil(int(words[0]) / int(words[1]))))
    return available


def limit_threads(threads: int | None) -> int:
    """Set OpenMP's thread count and idle behaviour for a torch that is not imported yet. Returns the thread count.

    In a member that was forked torch is there, and OpenMP has read its variables: the fork server's spin count is any
    member's, and the thread count is torch's to change.
    """
    count = threads or cpu_limit()
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))
    if "torch" in sys.modules:
        import torch

        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
    return count


def keep_out_of_core_dumps() -> None:
    """Hidden states count as text: a crash of this process leaves no core, not even to a core_pattern pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def import_meanwhile(module: str) -> None:
    """Import a module that takes seconds (torch) in a thread, while this process waits for its plan and its weights."""
    threading.Thread(target=importlib.import_module, args=(module,), name=f"import {module}", daemon=True).start()


def keep_out_of_collections() -> None:
    """What was made until now stays for good: later garbage collections do not look at it. A full one looks at all
    objects otherwise, those of torch's modules included, and holds every thread for 0.1 to 0.2 s."""
    gc.collect()
    gc.freeze()


def end_on_signals() -> None:
    """SIGTERM or SIGINT ends this process at once, with status 0: it waits or loads, and serves no request yet.

    The default action would do so with status 143, as if it had failed. Python's clean-up would not do: it could run
    while a thread is importing torch.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


class LeaveRequest(threading.Event):
    """Set by the first signal, or by the process itself. since: when that signal came, on the monotonic clock; infinity
    until then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.since = math.inf


def leave_on_signals() -> LeaveRequest:
    """The first SIGTERM or SIGINT asks this process to leave; the second ends it at once, with status 0."""
    request = LeaveRequest()

    def leave(number: int, frame: FrameType | None) -> None:
        if request.since < math.inf:
            os._exit(0)
        request.since = time.monotonic()
        request.set()

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    return request


def wait_for_signal(event: threading.Event) -> None:
    """Until it is set, in the main thread. The kernel may deliver a signal to any thread, but only the main one runs
    Python's handlers, and not while it waits without end.
    """
    while not event.wait(_LOOK_SECONDS):
        pass


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM or SIGINT sets, in place of their default actions."""
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping
