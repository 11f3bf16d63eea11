"""A pipe's running members, asked through the API server: what they report, and what they are connected to."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from support.kubectl import Kubectl
from support.metrics_page import metric

TELEMETRY_PORT = 9090
_LISTENING, _NOT_BEGUN = "0A", ("02", "03", "07")  # states in /proc/net/tcp; SYN_SENT, SYN_RECV and CLOSE are left out
EXPIRY = "languagepipes_certificate_expiry_timestamp_seconds"


@dataclass(frozen=True)
class Connection:
    """Seen at the listener's end: who came from where, to which of its ports."""

    dialler: str
    listener: str
    port: int


def pods(kubectl: Kubectl, pipe: str = "smollm2") -> list[dict[str, Any]]:
    return kubectl.list("pods", f"languagepipes.io/pipe={pipe}")


def alive(kubectl: Kubectl, role: str, pipe: str = "smollm2") -> list[dict[str, Any]]:
    """The pods of this role (store, end-model, stage) that are not ending, by name."""
    found = kubectl.list("pods", f"languagepipes.io/pipe={pipe},languagepipes.io/role={role}")
    kept = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return sorted(kept, key=lambda pod: str(pod["metadata"]["name"]))


def container_of(pod: dict[str, Any]) -> str:
    """What its node's containerd calls the member's container."""
    return str(pod["status"]["containerStatuses"][0]["containerID"]).removeprefix("containerd://")


def role(pod: dict[str, Any]) -> str:
    """ "store", "end-model", "stage-1" …"""
    labels = pod["metadata"]["labels"]
    place = labels.get("languagepipes.io/stage")
    return labels["languagepipes.io/role"] + (f"-{place}" if place else "")


def lives(kubectl: Kubectl) -> dict[str, tuple[str, int]]:
    """By role: the pod's UID and its containers' restarts."""
    return {
        role(pod): (
            pod["metadata"]["uid"],
            sum(status["restartCount"] for status in pod["status"]["containerStatuses"]),
        )
        for pod in pods(kubectl)
    }


def fetch(kubectl: Kubectl, pod: str, path: str, port: int = TELEMETRY_PORT) -> str:
    """What a pod answers to a GET, through the API server. Raises CommandFailed."""
    return kubectl("get", "--raw", f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}:{port}/proxy{path}")


def statuses(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    """By role: what /status says."""
    return {role(pod): json.loads(fetch(kubectl, pod["metadata"]["name"], "/status")) for pod in pods(kubectl)}


def expiries(kubectl: Kubectl) -> dict[str, float]:
    """By role: the metric of its certificate's end, Unix time."""
    return {role(pod): metric(fetch(kubectl, pod["metadata"]["name"], "/metrics"), EXPIRY) for pod in pods(kubectl)}


def connections(kubectl: Kubectl, pod: dict[str, Any]) -> Iterator[Connection]:
    """What is, or was in the last minute, connected to a pod's listening ports, and what the pod itself dialled."""
    own = pod["status"]["podIP"]
    table = kubectl("exec", pod["metadata"]["name"], "--", "cat", "/proc/net/tcp", "/proc/net/tcp6")
    rows = [line.split()[1:4] for line in table.splitlines() if ":" in line.split()[0]]
    ends = [(_end(local), _end(remote), state) for local, remote, state in rows]
    listening = {port for (_, port), _, state in ends if state == _LISTENING}
    for (_, port), (other, other_port), state in ends:
        if state == _LISTENING or state in _NOT_BEGUN or ipaddress.ip_address(other).is_loopback:
            continue
        if port in listening:
            yield Connection(dialler=other, listener=own, port=port)
        else:
            yield Connection(dialler=own, listener=other, port=other_port)


def _end(text: str) -> tuple[str, int]:
    """An end as the kernel prints it: 32-bit words of the machine's (little) byte order, in hexadecimal."""
    address, port = text.split(":")
    raw = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    found = ipaddress.ip_address(raw)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found), int(port, 16)
