"""The restricted profile of the Pod Security Standards, as published
(https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, with all of baseline), for pods that
run on Linux and set no ephemeral containers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def violations(pod: Mapping[str, Any]) -> Iterator[str]:
    """What the profile forbids in this PodSpec, in words."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is set"
    for volume in pod.get("volumes", ()):
        if not set(volume) - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']} is of a forbidden type"
    whole = pod.get("securityContext", {})
    if "sysctls" in whole or "seLinuxOptions" in whole or "windowsOptions" in whole or "appArmorProfile" in whole:
        yield "the pod sets what this judge does not know"
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        own = container.get("securityContext", {})
        title = container["name"]
        if own.get("privileged"):
            yield f"{title} is privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{title} may escalate"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{title} keeps capabilities"
        if set(own.get("capabilities", {}).get("add", ())) - {"NET_BIND_SERVICE"}:
            yield f"{title} adds capabilities"
        if own.get("procMount", "Default") != "Default":
            yield f"{title} unmasks /proc"
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            yield f"{title} may run as root"
        if own.get("runAsUser", whole.get("runAsUser")) == 0:
            yield f"{title} runs as root"
        profile = own.get("seccompProfile", whole.get("seccompProfile", {})).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield f"{title} has no seccomp profile"
        for port in container.get("ports", ()):
            if port.get("hostPort"):
                yield f"{title} takes a port of the host"
        for hook in ("livenessProbe", "readinessProbe", "startupProbe"):
            if container.get(hook, {}).get("httpGet", {}).get("host"):
                yield f"{title} probes another host"
