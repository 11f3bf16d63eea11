"""Why a member's container does not start: mounts, sandbox, image, configuration.

Texts are those of kubelet 1.37 (pkg/kubelet/images, pkg/kubelet/kuberuntime, pkg/volume).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from languagepipes_api.spec import PipeSpec
from languagepipes_api.template import StoreTemplate

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import (
    Member,
    container_state,
    container_statuses,
    name_of,
    pod_condition,
    time_of,
)
from languagepipes_operator.status.failures import Failure, failure, quoted

# A first sandbox often fails while a node's network plugin starts.
SLOW_SANDBOX = timedelta(seconds=30)
# A node image with CUDA is 6 GB to pull.
SLOW_START = timedelta(minutes=5)

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


def container_waits(
    member: Member, pod: Manifest, events: Sequence[Manifest], *, spec: PipeSpec, now: datetime
) -> Iterator[Failure]:
    """Of each container that waits to be started. Mounts come first: until they are there, and the sandbox after
    them, every container has the reason ContainerCreating and no other.
    """
    creating = any(
        container_state(status, "waiting").get("reason") in ("ContainerCreating", "PodInitializing")
        for status in container_statuses(pod)
    )
    mounted = pod_condition(pod, "PodReadyToStartContainers").get("status") == "True"
    found = [] if mounted or not creating else [*_mounts(member, events, spec), *_sandbox(member, pod, events, now)][:1]
    yield from found
    for status in container_statuses(pod):
        waiting = container_state(status, "waiting")
        reason, said = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        image = str(status.get("image", ""))
        if reason in _PULL_REASONS:
            yield _pull(member, image, said, events)
        elif reason == "InvalidImageName":
            yield failure(
                "InvalidImageName",
                f"{member.title}: {image!r} is not a valid image name: correct the node image that the operator was "
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
            yield not_created(member, said)
        elif creating and not found and _older(pod, SLOW_START, now):
            yield failure(
                "SlowStart",
                f"{member.title}: its container has not started on node {member.node} for more than "
                f"{SLOW_START.seconds // 60} minutes; the node may still be pulling {image or 'the image'}: see "
                f"kubectl describe pod {name_of(pod)}",
            )
            return


def _mounts(member: Member, events: Sequence[Manifest], spec: PipeSpec) -> Iterator[Failure]:
    """The newest FailedMount; the cause of older ones may be gone."""
    for event in events:
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            said = str(event.get("message", ""))
            yield missing_reference(member, said, spec) or failure(
                "FailedMount",
                f"{member.title}: a volume of its pod cannot be mounted ({quoted(_mount_words(said))}): see kubectl "
                f"describe pod {'' if member.pod is None else name_of(member.pod)}",
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
                f"{member.title}: {field} names the Secret {secret[1]}, which does not exist in the pipe's namespace: "
                "create it, or correct the field",
            )
        return failure(
            "FailedMount",
            f"{member.title}: the Secret {secret[1]} with its certificate does not exist yet; the operator creates it",
        )
    config_map = _CONFIG_MAP_MISSING.search(said)
    if config_map:
        field = _template_field(config_map[1], spec, of_secret=False)
        if field:
            return failure(
                "CreateContainerConfigError",
                f"{member.title}: {field} names the ConfigMap {config_map[1]}, which does not exist in the pipe's "
                "namespace: create it, or correct the field",
            )
        return failure(
            "MissingConfigMap",
            f"{member.title}: the ConfigMap {config_map[1]} does not exist; the operator creates it again",
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
    return _template_field(name, spec, of_secret=True)


def _mounted_secrets(template: StoreTemplate) -> set[str]:
    return {each.secret.secret_name for each in template.volumes if each.secret is not None}


def _mounted_config_maps(template: StoreTemplate) -> set[str]:
    return {each.config_map.name for each in template.volumes if each.config_map is not None}


def _template_field(name: str, spec: PipeSpec, *, of_secret: bool) -> str:
    """The field of a template that names that Secret or ConfigMap, or ""."""
    for field, template in spec.templates.items():
        sources = [variable.value_from for variable in template.env if variable.value_from is not None]
        keys = [one.secret_key_ref if of_secret else one.config_map_key_ref for one in sources]
        wholes = [one.secret_ref if of_secret else one.config_map_ref for one in template.env_from]
        if any(one is not None and one.name == name for one in keys):
            return f"spec.{field}.env"
        if any(one is not None and one.name == name for one in wholes):
            return f"spec.{field}.envFrom"
        if name in (_mounted_secrets(template) if of_secret else _mounted_config_maps(template)):
            return f"spec.{field}.volumes"
    return ""


def _pull(member: Member, image: str, said: str, events: Sequence[Manifest]) -> Failure:
    cause = _pull_cause(said)
    if not cause:
        # Older kubelets name the cause in the event alone.
        messages = (str(event.get("message", "")) for event in events if event.get("reason") == "Failed")
        cause = next((_pull_cause(message) for message in messages if message.startswith("Failed to pull")), "")
    lower = cause.lower()
    if any(word in lower for word in ("unauthorized", "authorization failed", "pull access denied", "403 forbidden")):
        remedy = "the registry requires credentials: name a pull secret in imagePullSecrets of its template"
    elif "not found" in lower or "manifest unknown" in lower:
        remedy = "there is no such image: push it, or correct the image that the operator was installed with"
    else:
        remedy = f"check that node {member.node or 'of the pod'} can reach the registry, and that the image exists"
    because = f" ({quoted(cause)})" if cause else ""
    return failure("ImagePullBackOff", f"{member.title}: the image {image} cannot be pulled{because}: {remedy}")


def _pull_cause(said: str) -> str:
    while (cut := _PULL_NOISE.sub("", said)) != said:
        said = cut
    return said


def _config(member: Member, said: str, spec: PipeSpec) -> Iterator[Failure]:
    yield missing_reference(member, said, spec) or failure(
        "CreateContainerConfigError",
        f"{member.title}: the kubelet cannot configure its container ({quoted(said)}): correct what is named there",
    )


def not_created(member: Member, said: str) -> Failure:
    gpu = ": with a GPU, set runtimeClassName in its template to NVIDIA's" if "nvidia" in said.lower() else ""
    return failure(
        "CreateContainerError",
        f"{member.title}: the container runtime of node {member.node} cannot create its container ({quoted(said)})"
        f"{gpu or ': correct what is named there'}",
    )


def _sandbox(member: Member, pod: Manifest, events: Sequence[Manifest], now: datetime) -> Iterator[Failure]:
    for event in events:
        if event.get("reason") == "FailedCreatePodSandBox" and _older(pod, SLOW_SANDBOX, now):
            yield failure(
                "SandboxFailed",
                f"{member.title}: node {member.node} cannot create the sandbox of its pod "
                f"({quoted(str(event.get('message', '')))}): check the node's network plugin and container runtime; "
                "with a GPU, check runtimeClassName",
            )
            return


def _older(pod: Manifest, age: timedelta, now: datetime) -> bool:
    since = pod_condition(pod, "PodScheduled").get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
    started = time_of(str(since or ""))
    return started is not None and now - started > age


def _mount_words(said: str) -> str:
    match = _MOUNT_VOLUME.match(said)
    return f"{match[1]}: {match[2]}" if match else said
