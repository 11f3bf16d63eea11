"""A failure of a pipe: one word for machines, and a sentence with the remedy.

Messages are bounded, on one line, and free of what changes from one attempt to the next (ids, ports, names of pods), so
that the same failure gives the same message. This module decides nothing and knows nothing of conditions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from languagepipes_operator.observe.ownership import Member, pod_condition
from languagepipes_operator.status.reasons import REASONS

MESSAGE_MAX = 1024  # of an Event (k8s.io/api/events/v1, validation); conditions could have more
_QUOTE_MAX = 400

# Ids and source ports, which differ at each attempt.
_UNSTEADY = re.compile(
    r"\b[0-9a-f]{32,}\b|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9.]+:[0-9]+->|\[[0-9a-f:]+\]:[0-9]+->"
)
# `pods "qwen3-stage-1-0-5d4f-x7k2p" is forbidden: …`: the pod's name differs at each attempt.
_REFUSED_NAME = re.compile(
    r'(?:[\w.]+ "[^"]*" is (?:forbidden|invalid)|admission webhook "[^"]*" denied the request): '
)

_QUOTA_UNSPECIFIED = re.compile(r"failed quota: [^:]*: must specify ([a-z0-9./,-]+)")
_SERVICE_ACCOUNT_MISSING = re.compile(r'serviceaccount "([^"]*)" not found')


@dataclass(frozen=True)
class Failure:
    """reason: CamelCase. message: with the remedy. waits: whether it may pass without action by a person."""

    reason: str
    message: str
    waits: bool = False


def failure(reason: str, message: str) -> Failure:
    """A failure that the operator found (`reasons.REASONS`). The message becomes one line of at most MESSAGE_MAX."""
    return Failure(reason, bounded(message), waits=not REASONS[reason].needs_person)


def external_failure(reason: str, message: str, *, waits: bool = False) -> Failure:
    """A failure that the planner or the weights store found: with their reason and message, word for word."""
    known = REASONS.get(reason)
    return Failure(reason, bounded(message), waits=waits or (known is not None and not known.needs_person))


def bounded(text: str, most: int = MESSAGE_MAX) -> str:
    """`text` on one line, at most that many characters, an ellipsis for what was cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def quoted(text: str) -> str:
    """Another program's message, to be quoted in a sentence: short, one line, without a full stop and without ids."""
    return bounded(_UNSTEADY.sub("…", text), _QUOTE_MAX).rstrip(" .")


def refusals(member: Member) -> Iterator[Failure]:
    """Why the member's Deployment cannot make its pod, as its ReplicaFailure condition quotes it."""
    if member.deployment is None:
        return
    condition = pod_condition(member.deployment, "ReplicaFailure")
    if condition.get("status") == "True":
        yield refused(f"{member.title}: its pod", str(condition.get("message", "")), otherwise="PodRefused")


def refused(what: str, said: str, *, otherwise: str) -> Failure:
    """From the API server's message when it refused to create `what`. otherwise: the reason for an unknown message."""
    said = _REFUSED_NAME.sub("", said)
    if "exceeded quota" in said:
        return failure(
            "QuotaExceeded",
            f"{what} exceeds the namespace's ResourceQuota ({quoted(said)}): raise the quota, or use fewer "
            "replicas, fewer stages, or fewer resources in their templates",
        )
    if unspecified := _QUOTA_UNSPECIFIED.search(said):
        return failure(
            otherwise,
            f"{what} is refused, since a ResourceQuota of the namespace needs {unspecified[1]} of every container: set "
            "it under resources in its template (of the weights store: spec.store.template)",
        )
    if "violates PodSecurity" in said:
        return failure(
            "PodSecurityDenied",
            f"{what} is refused by the namespace's Pod Security level ({quoted(said)}): the operator creates "
            "pods that meet the level restricted; find the mutating webhook that changes them",
        )
    if "no PriorityClass with name" in said:
        return failure(
            "MissingPriorityClass",
            f"{what} is refused ({quoted(said)}): create the class, or correct priorityClassName in its template",
        )
    if "RuntimeClass" in said and "not found" in said:
        return failure(
            "MissingRuntimeClass",
            f"{what} is refused ({quoted(said)}): create the class, or correct runtimeClassName in its template",
        )
    if missing := _SERVICE_ACCOUNT_MISSING.search(said):
        return failure(
            "MissingServiceAccount",
            f"{what} is refused, since there is no ServiceAccount {missing[1]} in the pipe's namespace: create it, or "
            "correct serviceAccountName in its template",
        )
    return failure(
        otherwise,
        f"{what} is refused by the API server ({quoted(said)}): correct the spec, or the policy that refuses it",
    )


def summary(failures: Iterable[Failure]) -> Failure | None:
    """The first of `failures`, which are sorted by cause, with the number and reasons of the others; None if empty."""
    found = list(dict.fromkeys(failures))
    if not found:
        return None
    first, others = found[0], found[1:]
    if not others:
        return first
    more = ", ".join(dict.fromkeys(other.reason for other in others))
    tail = f" (and {len(others)} more: {bounded(more, 120)})"
    return Failure(first.reason, bounded(first.message, MESSAGE_MAX - len(tail)) + tail, first.waits)
