"""What a run must leave as it was: KV blocks, sequences, threads, descriptors, processes, memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import httpx

from support.chaos.members import END_MODEL, Members
from support.waiting import eventually

# Of one process, between two moments at which nothing runs. Allocators keep what a burst of frames, log lines or
# connections took, but they take it once: a leak of 100 KiB a fault is past this after 320 faults.
MEMORY_GROWTH_BYTES = 32 * 2**20
_SETTLING_SECONDS = 30.0
# The End Model's pool for tokenising starts its second thread when two requests come within a millisecond.
_LATE_THREADS = 1


@dataclass(frozen=True)
class Usage:
    """One process at a moment at which no request runs."""

    pid: int
    threads: int
    descriptors: int
    resident_bytes: int


def usage(members: Members) -> dict[str, Usage]:
    """Of each member, by name. Raises httpx.HTTPError if one is away."""
    return {name: _usage(members, name) for name in members.names}


def _usage(members: Members, name: str) -> Usage:
    # /proc says it to everybody, but for descriptors, which a process that writes no cores shows to itself alone.
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{members.processes.pids[name]}/status").read_text().splitlines()
    )
    return Usage(
        pid=members.processes.pids[name],
        threads=int(status["Threads"]),
        descriptors=int(members.metrics(name)["process_open_fds"]),
        resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
    )


def wait_idle(members: Members) -> None:
    """Until no sequence is left, no KV block is held and the ring is whole. Raises AssertionError."""

    def state() -> dict[str, float]:
        found = members.metrics()
        return {
            name: found[f"languagepipes_{name}"]
            for name in ("kv_blocks_used", "running_sequences", "waiting_sequences", "frames_in_flight")
        }

    eventually(
        lambda: members.ring_ready() and not any(state().values()),
        seconds=_SETTLING_SECONDS,
        what="no sequence, no KV block in use, no frame in flight, and a whole ring",
        every_seconds=0.1,
        not_yet=(httpx.HTTPError, KeyError),
    )


def leaks(members: Members, before: dict[str, Usage]) -> list[str]:
    """What is left of a run that began at `before`, as sentences; waits for what is on its way out.

    A process that was started meanwhile is held against what the one before it had at the start.
    """
    problems = []
    try:
        wait_idle(members)
    except AssertionError as error:
        problems.append(f"not idle after the run: {error}; metrics: {_engine_metrics(members)}")
    for name, was in before.items():
        try:
            eventually(
                lambda name=name, was=was: not _grown(_usage(members, name), was),  # type: ignore[misc]
                seconds=_SETTLING_SECONDS,
                every_seconds=0.5,
                not_yet=(httpx.HTTPError,),
            )
        except AssertionError:
            problems += [f"{name}: {growth}" for growth in _grown(_usage(members, name), was)]
    running, known = members.processes.all_ids(), members.processes.pids
    if running != set(known.values()):
        problems.append(f"processes: {running} run, {known} are the members'")
    for number, link in enumerate(members.links):
        if link.connections != 1:
            problems.append(f"link {number} has {link.connections} connections, not 1")
    return problems


def _grown(now: Usage, was: Usage) -> list[str]:
    grown = []
    if now.threads > was.threads + _LATE_THREADS:
        grown.append(f"{now.threads} threads, {was.threads} before")
    if now.descriptors > was.descriptors:
        grown.append(f"{now.descriptors} descriptors, {was.descriptors} before")
    if now.resident_bytes > was.resident_bytes + MEMORY_GROWTH_BYTES:
        grown.append(
            f"{now.resident_bytes / 2**20:.0f} MiB resident, {was.resident_bytes / 2**20:.0f} MiB before; "
            f"allowed are {MEMORY_GROWTH_BYTES / 2**20:.0f} MiB more"
        )
    return grown


def _engine_metrics(members: Members) -> dict[str, float]:
    try:
        found = members.metrics(END_MODEL)
    except httpx.HTTPError:
        return {}
    return {name: value for name, value in found.items() if "blocks" in name or "sequences" in name}
