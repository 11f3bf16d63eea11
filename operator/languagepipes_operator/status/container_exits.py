"""Why a member's container did not stay: its exit code, its termination message, its memory, its probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import Member, container_state, container_statuses, name_of, time_of
from languagepipes_operator.status.container_waits import not_created
from languagepipes_operator.status.failures import Failure, failure, quoted

# A crash is why a pod is not ready for as long as the container may take to load again.
CRASH_COUNTS = timedelta(minutes=5)
# The kubelet forgets its back-off after a run of that length.
LONG_RUN = timedelta(minutes=10)


def container_ends(member: Member, pod: Manifest, events: Sequence[Manifest], *, now: datetime) -> Iterator[Failure]:
    """Of each container that ended, or runs again since not long: how it ended."""
    for status in container_statuses(pod):
        ended = _last_end(status, now)
        if ended is None:
            continue
        reason, code = str(ended.get("reason", "")), int(ended.get("exitCode", 0))
        looping = _looping(status, ended)
        if reason == "OOMKilled":
            yield _out_of_memory(member, pod, str(status.get("name", "")))
        elif reason in ("StartError", "ContainerCannotRun"):
            yield not_created(member, str(ended.get("message", "")))
        elif not looping and _probe_killed(code, events):
            yield failure(
                "ProbeFailed",
                f"{member.title}: its container did not answer its probe and was restarted: see kubectl logs "
                f"{name_of(pod)} --previous",
            )
        elif looping or code:
            words = quoted(str(ended.get("message", "")))
            last = f"termination message: {words}" if words else "it left no termination message"
            yield failure(
                "CrashLoopBackOff" if looping else "ContainerFailed",
                f"{member.title}: its container ended with exit code {code} ({reason or 'Error'})"
                f"{' repeatedly' if looping else ' and was restarted'}; {last}; see kubectl logs "
                f"{name_of(pod)} --previous",
            )


def _looping(status: dict[str, Any], ended: dict[str, Any]) -> bool:
    """Whether the kubelet holds it back, or did at the last start and the run that ended was no longer one."""
    if container_state(status, "waiting").get("reason") == "CrashLoopBackOff":
        return True
    began, finished = time_of(ended.get("startedAt")), time_of(ended.get("finishedAt"))
    short = began is not None and finished is not None and finished - began < LONG_RUN
    return short and int(status.get("restartCount", 0)) >= 2


def _last_end(status: dict[str, Any], now: datetime) -> dict[str, Any] | None:
    """How the container ended last, if that is why it is not ready now: it is down, or started again not long ago."""
    ended = container_state(status, "terminated")
    if ended:
        return ended
    last = dict((status.get("lastState") or {}).get("terminated") or {})
    if not last:
        return None
    running = container_state(status, "running")
    started = time_of(str(running.get("startedAt", "")))
    if started is not None and now - started > CRASH_COUNTS:
        return None
    return last


def _out_of_memory(member: Member, pod: Manifest, container: str) -> Failure:
    limit = next(
        (
            (spec.get("resources", {}).get("limits") or {}).get("memory")
            for spec in pod.get("spec", {}).get("containers") or ()
            if spec.get("name") == container
        ),
        None,
    )
    remedy = "raise memory in its template, or use more stages or a shorter spec.model.maxContextLength"
    if member.role == "store":
        # Its memory limit is set by the operator (`children.resources`); conversion takes most.
        remedy = "use a source in safetensors format, which needs no conversion; if it is one, report this as a bug"
    elif member.role == "end-model":
        remedy = "raise memory in endModel.template, or lower endModel.localLayers or spec.model.maxContextLength"
    stated = f"its memory limit of {limit}" if limit else "the memory of its node (it has no limit)"
    return failure(
        "OOMKilled",
        f"{member.title}: its container needed more than {stated}, and the kernel stopped it: {remedy}",
    )


def _probe_killed(code: int, events: Sequence[Manifest]) -> bool:
    """Ended by SIGTERM or SIGKILL after a liveness or startup probe failed (pkg/kubelet/prober)."""
    return code in (0, 137, 143) and any(
        event.get("reason") == "Unhealthy"
        and str(event.get("message", "")).startswith(("Liveness probe", "Startup probe"))
        for event in events
    )
