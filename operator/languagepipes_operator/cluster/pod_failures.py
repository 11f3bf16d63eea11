"""Why a member's pod does not run or does not stay: from the kubelet's statuses and Warning events.

Texts are those of kubelet 1.37 (pkg/kubelet, pkg/volume, pkg/controller/tainteviction).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from languagepipes_api.spec import PipeSpec

from languagepipes_operator.cluster.failures import Failure, failure, quoted
from languagepipes_operator.cluster.membership import Member, container_statuses, pod_condition
from languagepipes_operator.cluster.snapshot import Manifest, MemberReport

SLOW_START = timedelta(minutes=3)
# A crash is why a pod is not ready for as long as the container takes to load again.
CRASH_COUNTS = timedelta(minutes=5)

_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed")
_CREATE_REASONS = ("CreateContainerError", "RunContainerError", "CreatePodSandboxError")
_PULL_NOISE = re.compile(
    r'^(?:Back-off pulling image "[^"]*"(?:: )?|Failed to pull image "[^"]*": |ErrImagePull: '
    r"|rpc error: code = \w+ desc = )"
)
_SECRET_MISSING = re.compile(r'secrets? "([^"]+)" not found')
_CONFIG_MAP_MISSING = re.compile(r'configmaps? "([^"]+)" not found')
_KEY_MISSING = re.compile(r"references non-existent secret key: (\S+)|couldn't find key (\S+) in Secret \S+?/(\S+)")
_MOUNT_VOLUME = re.compile(r'MountVolume\.SetUp failed for volume "([^"]+)" : (.*)', re.DOTALL)


def pod_failures(
    member: Member,
    events: Sequence[Manifest],
    report: MemberReport | None,
    *,
    spec: PipeSpec,
    now: datetime,
) -> Iterator[Failure]:
    """Of a member that is not ready, the most causal first. events: the pod's Warnings, newest first."""
    pod = member.pod
    if pod is None:
        yield from _ended(member)
        return
    yield from _waiting(member, pod, events, spec=spec, now=now)
    yield from _ended_containers(member, pod, events, now=now)
    if report is not None and report.state == "failed":
        yield failure("MemberFailed", f"{member.title} has given up: {quoted(report.message) or 'it does not say why'}")
    yield from _lost(member, pod, events)
    yield from _ended(member)


# 1. Containers that do not start


def _waiting(
    member: Member, pod: Manifest, events: Sequence[Manifest], *, spec: PipeSpec, now: datetime
) -> Iterator[Failure]:
    # Mounts come first: until they are there, every container says ContainerCreating and nothing else.
    creating = any(
        _state(status, "waiting").get("reason") in ("ContainerCreating", "PodInitializing")
        for status in container_statuses(pod)
    )
    found = list(_mounts(member, events, spec)) if creating else []
    yield from found
    for status in container_statuses(pod):
        waiting = _state(status, "waiting")
        reason, said = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        image = str(status.get("image", ""))
        if reason in _PULL_REASONS:
            yield _pull(member, image, said, events)
        elif reason == "InvalidImageName":
            yield failure(
                "InvalidImageName",
                f"{member.title}: {image!r} is no image name: correct the node image that the operator was "
                "installed with",
            )
        elif reason == "ErrImageNeverPull":
            yield failure(
                "ErrImageNeverPull",
                f"{member.title}: node {member.node} does not have the image {image}, and the pull policy is Never: "
                "load the image on the node, or set the pull policy to IfNotPresent",
            )
        elif reason == "CreateContainerConfigError":
            yield from _config(member, said, spec)
        elif reason in _CREATE_REASONS:
            yield _create(member, said)
        elif creating and not found and _older(pod, SLOW_START, now):
            yield _slow(member, pod, image, events)
            return


def _mounts(member: Member, events: Sequence[Manifest], spec: PipeSpec) -> Iterator[Failure]:
    """The newest FailedMount; older ones may be mended."""
    for event in events:
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            said = str(event.get("message", ""))
            yield missing_reference(member, said, spec) or failure(
                "FailedMount",
                f"{member.title}: a volume of its pod cannot be mounted ({quoted(_mount_words(said))}): see kubectl "
                f"describe pod {_name(member.pod)}",
            )
            return


def missing_reference(member: Member, said: str, spec: PipeSpec) -> Failure | None:
    """A Secret, a key in one, or a ConfigMap that `said` (the kubelet's words) misses, by the field that names it."""
    secret = _SECRET_MISSING.search(said)
    if secret:
        field = _secret_field(secret[1], spec)
        if field:
            return failure(
                "MissingSecret",
                f"{member.title}: there is no Secret {secret[1]} in the pipe's namespace, which {field} names: create "
                "it, or correct the field",
            )
        return failure(
            "FailedMount",
            f"{member.title}: the Secret {secret[1]} with its certificate is not there yet; the operator makes it",
        )
    config_map = _CONFIG_MAP_MISSING.search(said)
    if config_map:
        return failure(
            "MissingConfigMap",
            f"{member.title}: the ConfigMap {config_map[1]} is not there; the operator makes it again",
        )
    key = _KEY_MISSING.search(said)
    if key:
        token = spec.model.token_secret_ref
        missing = key[1] or key[2]
        name = key[3] or (token.name if token is not None else "")
        if token is not None and token.key == missing:
            return failure(
                "MissingSecretKey",
                f"{member.title}: the Secret {name} has no key {missing}: add it (kubectl create secret generic {name} "
                f"--from-literal={missing}=…), or correct spec.model.tokenSecretRef.key",
            )
        return failure("MissingSecretKey", f"{member.title}: a Secret of its pod has no key {missing}: add it")
    return None


def _secret_field(name: str, spec: PipeSpec) -> str:
    """The spec's field that names that Secret, or ""."""
    token, keys = spec.model.token_secret_ref, spec.server.api_keys_secret_ref
    if token is not None and token.name == name:
        return "spec.model.tokenSecretRef"
    if keys is not None and keys.name == name:
        return "spec.server.apiKeysSecretRef"
    return ""


def _pull(member: Member, image: str, said: str, events: Sequence[Manifest]) -> Failure:
    cause = _pull_cause(said)
    if not cause:
        # Older kubelets name the cause in the event alone.
        messages = (str(event.get("message", "")) for event in events if event.get("reason") == "Failed")
        cause = next((_pull_cause(message) for message in messages if message.startswith("Failed to pull")), "")
    lower = cause.lower()
    if any(word in lower for word in ("unauthorized", "authorization failed", "pull access denied", "403 forbidden")):
        remedy = "the registry asks for credentials: name a pull secret in imagePullSecrets of its template"
    elif "not found" in lower or "manifest unknown" in lower:
        remedy = "there is no such image: push it, or correct the image that the operator was installed with"
    else:
        remedy = f"see that node {member.node or 'of the pod'} reaches the registry, and that the image exists"
    because = f" ({quoted(cause)})" if cause else ""
    return failure("ImagePullBackOff", f"{member.title}: the image {image} cannot be pulled{because}: {remedy}")


def _pull_cause(said: str) -> str:
    while (cut := _PULL_NOISE.sub("", said)) != said:
        said = cut
    return said


def _config(member: Member, said: str, spec: PipeSpec) -> Iterator[Failure]:
    yield missing_reference(member, said, spec) or failure(
        "CreateContainerConfigError",
        f"{member.title}: its container cannot be configured ({quoted(said)}): correct what is named there",
    )


def _create(member: Member, said: str) -> Failure:
    gpu = ": with a GPU, set runtimeClassName in its template to NVIDIA's" if "nvidia" in said.lower() else ""
    return failure(
        "CreateContainerError",
        f"{member.title}: the container runtime of node {member.node} cannot create its container ({quoted(said)})"
        f"{gpu or ': correct what is named there'}",
    )


def _slow(member: Member, pod: Manifest, image: str, events: Sequence[Manifest]) -> Failure:
    for event in events:
        if event.get("reason") == "FailedCreatePodSandBox":
            return failure(
                "SandboxFailed",
                f"{member.title}: node {member.node} cannot make its pod's sandbox "
                f"({quoted(_steady(str(event.get('message', ''))))}): look at that node's network plugin and runtime",
            )
    return failure(
        "SlowStart",
        f"{member.title}: its container has not started on node {member.node} for more than "
        f"{SLOW_START.seconds // 60} minutes; the node may still be pulling {image or 'the image'}: see kubectl "
        f"describe pod {_name(pod)}",
    )


# 2. Containers that do not stay


def _ended_containers(member: Member, pod: Manifest, events: Sequence[Manifest], *, now: datetime) -> Iterator[Failure]:
    for status in container_statuses(pod):
        ended = _last_end(status, now)
        if ended is None:
            continue
        reason, code = str(ended.get("reason", "")), int(ended.get("exitCode", 0))
        again = int(status.get("restartCount", 0))
        looping = _state(status, "waiting").get("reason") == "CrashLoopBackOff" or again >= 2
        if reason == "OOMKilled":
            yield _out_of_memory(member, pod, str(status.get("name", "")))
        elif reason in ("StartError", "ContainerCannotRun"):
            yield _create(member, str(ended.get("message", "")))
        elif not looping and _probe_killed(code, events):
            yield failure(
                "ProbeFailed",
                f"{member.title}: its container did not answer its probe and was started again: see kubectl logs "
                f"{_name(pod)} --previous",
            )
        elif looping or code:
            words = quoted(str(ended.get("message", "")))
            last = f"its last words: {words}" if words else "it left no last words"
            yield failure(
                "CrashLoopBackOff" if looping else "ContainerFailed",
                f"{member.title}: its container ended with exit code {code} ({reason or 'Error'})"
                f"{' again and again' if looping else ' and was started again'}; {last}; see kubectl logs {_name(pod)} "
                "--previous",
            )


def _last_end(status: dict[str, Any], now: datetime) -> dict[str, Any] | None:
    """How the container ended last, if that is why it is not ready now: it is down, or started again not long ago."""
    ended = _state(status, "terminated")
    if ended:
        return ended
    last = dict((status.get("lastState") or {}).get("terminated") or {})
    if not last:
        return None
    running = _state(status, "running")
    started = _time(str(running.get("startedAt", "")))
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
    more = "take more stages or a shorter spec.model.maxContextLength"
    if member.role == "store":
        more = "give the store more"
    stated = f"its memory limit of {limit}" if limit else "the memory of its node (it has no limit)"
    return failure(
        "OOMKilled",
        f"{member.title}: its container needed more than {stated} and was ended: raise memory in its template, "
        f"or {more}",
    )


def _probe_killed(code: int, events: Sequence[Manifest]) -> bool:
    """Ended by SIGTERM or SIGKILL after a liveness or startup probe failed."""
    return code in (0, 137, 143) and any(
        event.get("reason") == "Unhealthy"
        and str(event.get("message", "")).startswith(("Liveness probe", "Startup probe"))
        for event in events
    )


# 3. Pods that are gone, or their nodes


def _lost(member: Member, pod: Manifest, events: Sequence[Manifest]) -> Iterator[Failure]:
    unknown = pod.get("status", {}).get("phase") == "Unknown" or pod.get("status", {}).get("reason") == "NodeLost"
    ready = pod_condition(pod, "Ready")
    # The node controller writes Ready=False alone; its event says why. A container that ended says so itself.
    silent = ready.get("status") != "True" and any(event.get("reason") == "NodeNotReady" for event in events)
    running = any(_state(status, "running") for status in container_statuses(pod))
    if unknown or (silent and running):
        yield _node_lost(member, str(pod.get("spec", {}).get("nodeName", "")))


def _node_lost(member: Member, node: str) -> Failure:
    return failure(
        "NodeLost",
        f"{member.title}: node {node} does not answer; its pod is started on another node after 30 seconds, if one can "
        "take it: repair the node, or delete it",
    )


def _ended(member: Member) -> Iterator[Failure]:
    """What became of the pod before this one."""
    for pod in member.past[:1]:
        status = pod.get("status", {})
        node = str(pod.get("spec", {}).get("nodeName", ""))
        said = quoted(str(status.get("message", "")))
        if status.get("phase") == "Failed" and status.get("reason") == "Evicted":
            yield failure(
                "Evicted",
                f"{member.title}: node {node} evicted its pod ({said}); another is being started: give it the memory "
                "that it needs as a request, or the node more",
            )
        elif status.get("phase") == "Failed" and status.get("reason"):
            yield failure(
                "PodRejected",
                f"{member.title}: node {node} refused its pod ({status['reason']}: {said}); another is being started",
            )
        elif pod_condition(pod, "DisruptionTarget").get("reason") == "DeletionByTaintManager":
            yield _node_lost(member, node)


def _state(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return dict((status.get("state") or {}).get(kind) or {})


def _older(pod: Manifest, age: timedelta, now: datetime) -> bool:
    since = pod_condition(pod, "PodScheduled").get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
    started = _time(str(since or ""))
    return started is not None and now - started > age


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _mount_words(said: str) -> str:
    match = _MOUNT_VOLUME.match(said)
    return _steady(f"{match[1]}: {match[2]}" if match else said)


def _steady(said: str) -> str:
    """Without the sandbox's id, which is another at each try."""
    return re.sub(r"\b[0-9a-f]{32,}\b", "…", said)


def _name(pod: Manifest | None) -> str:
    return "" if pod is None else str(pod["metadata"].get("name", ""))
