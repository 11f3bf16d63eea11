"""Each failure that Kubernetes shows, in its own words, and what is expected to be said of it.

Texts are those that kube-scheduler, kubelet, the controllers and the API server 1.37 write (read in their sources).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from languagepipes_api.member_status import MemberStatus
from languagepipes_operator.observe.snapshot import StoreReport
from languagepipes_operator.planning.errors import PlanError

from support.cluster_state import (
    IMAGE,
    ClusterState,
    Spoil,
    at,
    ended,
    pod_condition,
    unready,
    unscheduled,
    waiting,
    warning,
)

STAGE_2 = "smol-stage-0-2-1a2b3c4d-7c9d-x2x4p"
STORE = "smol-store-1a2b3c4d-7c9d-x2x4p"
END_MODEL = "smol-end-model-0-0-1a2b3c4d-7c9d-x2x4p"
PREEMPTION = " preemption: 0/{0} nodes are available: {0} Preemption is not helpful for scheduling."


@dataclass(frozen=True)
class Case:
    """One failure: how it comes about, and what Ready says of it. says: parts of the message, in any order."""

    name: str
    spoil: Spoil
    reason: str
    says: tuple[str, ...]
    spec: dict[str, Any] | None = None
    # Which other condition is False for the same reason.
    also: str = "StagesReady"


def scheduler(
    message: str, *, stage: int = 2, asks: dict[str, str] | None = None, selector: dict[str, str] | None = None
) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        pod = unscheduled(cluster.pod("stage", stage=stage), message)
        pod["spec"] |= {"nodeSelector": selector} if selector else {}
        pod["spec"]["containers"][0]["resources"] = {"requests": asks or {"cpu": "100m", "memory": "12Gi"}}

    return spoil


def stage_waits(reason: str, message: str = "", *events: dict[str, Any], sandbox: str = "True") -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        pod = waiting(cluster.pod("stage", stage=2), reason, message)
        pod["status"]["conditions"][0]["status"] = sandbox
        cluster.events[f"Pod/{STAGE_2}"] = events

    return spoil


def mount_fails(role: str, message: str) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        pod = waiting(cluster.pod(role), "ContainerCreating")
        pod["status"]["conditions"][0]["status"] = "False"
        cluster.events[f"Pod/{pod['metadata']['name']}"] = (warning("FailedMount", message),)

    return spoil


def stage_ends(**how: Any) -> Spoil:
    return lambda cluster: void(ended(cluster.pod("stage", stage=2), **how))


def refused(message: str) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        cluster.drop("stage", stage=2)
        cluster.deployment("stage", stage=2)["status"] = {
            "observedGeneration": 1,
            "unavailableReplicas": 1,
            "conditions": [
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": f'pods "smol-stage-0-2-1a2b3c4d-7c9d-q7k2p" is forbidden: {message}',
                    "lastTransitionTime": at(seconds=20),
                }
            ],
        }

    return spoil


def claim(phase: str, storage_class: str | None, *events: dict[str, Any]) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        cluster.claims["smol-cache-1a2b3c4d"] = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "smol-cache-1a2b3c4d", "creationTimestamp": at(seconds=60)},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "40Gi"}},
                "volumeMode": "Filesystem",
                **({} if storage_class is None else {"storageClassName": storage_class}),
            },
            "status": {"phase": phase},
        }
        cluster.events["PersistentVolumeClaim/smol-cache-1a2b3c4d"] = events
        unscheduled(
            cluster.pod("store"),
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims." + PREEMPTION.format(2),
        )
        cluster.planned = False

    return spoil


def store_says(reason: str, message: str, *, failed: bool = True) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        unready(cluster.pod("store"))
        cluster.planned = False
        phase = "Failed" if failed else "Resolving"
        cluster.store = StoreReport(True, phase=phase, reason=reason, message=message, failed=failed)

    return spoil


def evicted(cluster: ClusterState) -> None:
    old = cluster.pod("stage", stage=2)
    replacement = waiting(_replacement(cluster, stage=2), "ContainerCreating")
    replacement["metadata"]["creationTimestamp"] = at(seconds=3)
    old["status"] = {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "The node was low on resource: memory. Threshold quantity: 100Mi, available: 71860Ki. Container "
        "stage was using 3172900Ki, request is 1Gi, has larger consumption of memory. ",
        "startTime": at(seconds=600),
    }


def rejected(cluster: ClusterState) -> None:
    old = cluster.pod("stage", stage=2)
    waiting(_replacement(cluster, stage=2), "ContainerCreating")
    old["status"] = {
        "phase": "Failed",
        "reason": "OutOfmemory",
        "message": "Pod was rejected: Node didn't have enough resource: memory, requested: 1073741824, used: "
        "7516192768, capacity: 8223158272",
    }


def node_went_silent(cluster: ClusterState) -> None:
    """The node controller marked the pod, as it does after 40 seconds; the kubelet wrote nothing."""
    pod = cluster.pod("stage", stage=2)
    next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")["status"] = "False"
    cluster.events[f"Pod/{STAGE_2}"] = (warning("NodeNotReady", "Node is not ready"),)


def node_was_given_up(cluster: ClusterState) -> None:
    old = cluster.pod("stage", stage=2)
    waiting(_replacement(cluster, stage=2), "ContainerCreating")
    old["metadata"] |= {"deletionTimestamp": at(seconds=2), "deletionGracePeriodSeconds": 30}
    taint = "Taint manager: deleting due to NoExecute taint"
    old["status"]["conditions"].append(pod_condition("DisruptionTarget", "True", "DeletionByTaintManager", taint))


def _replacement(cluster: ClusterState, *, stage: int) -> dict[str, Any]:
    """A second pod of that stage, newer than the first, on node n2."""
    first = cluster.pod("stage", stage=stage)
    other = ClusterState.ready(cluster.raw["spec"]).pod("stage", stage=stage)
    other["metadata"] |= {"name": f"{first['metadata']['name'][:-5]}b8d9k", "creationTimestamp": at(seconds=3)}
    for condition in other["status"]["conditions"]:
        condition["lastTransitionTime"] = at(seconds=3)
    other["spec"]["nodeName"] = "n2"
    cluster.pods[other["metadata"]["name"]] = other
    return other


def ring_is_down(cluster: ClusterState) -> None:
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = MemberStatus(
        state="ready", ring_ready=False, ring_error="stage 2 closed the link: no bytes for 1.0 s"
    )


def member_gave_up(cluster: ClusterState) -> None:
    unready(cluster.pod("stage", stage=2))
    cluster.members[STAGE_2] = MemberStatus(state="failed", message="the plan file holds no plan")


def store_is_silent(cluster: ClusterState) -> None:
    cluster.planned = False
    cluster.store = StoreReport(answered=False, misses=6)


def foreign_service(owner: dict[str, Any] | None) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        metadata: dict[str, Any] = {"name": "smol", "namespace": "models"}
        cluster.foreign["Service/smol"] = {
            "kind": "Service",
            "metadata": metadata if owner is None else {**metadata, "ownerReferences": [owner]},
        }
        cluster.conflicts = ("Service/smol",)
        del cluster.services["smol"]

    return spoil


def denied(words: str) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        cluster.blocking_errors = (words,)

    return spoil


def refusal(reason: str, message: str) -> Spoil:
    def spoil(cluster: ClusterState) -> None:
        cluster.refusal = PlanError(reason, message)

    return spoil


def void(_: object) -> None:
    """For lambdas, which must return something."""


PULL_ERROR = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
GATED = "hf://meta-llama/Llama-3.1-8B is gated: accept its terms and set spec.model.tokenSecretRef"
TOKEN = {"model": {"source": "hf://a/b", "tokenSecretRef": {"name": "hf", "key": "token"}}}
KEYS = {"server": {"apiKeysSecretRef": {"name": "keys"}}}
VOLUMES = {
    "endModel": {
        "template": {
            "volumes": [
                {"name": "ca", "configMap": {"name": "corporate"}},
                {"name": "vault", "secret": {"secretName": "vault"}},
            ]
        }
    }
}

CASES = (
    Case(
        "a stage that asks for more memory than any node has",
        scheduler(
            "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No preemption "
            "victims found for incoming pod."
        ),
        "Unschedulable",
        (
            "stage stage-2: none of 2 nodes can run it",
            "2 have too little free memory",
            "it requests 12 GiB",
            "the largest node has 8 GiB, 4 GiB too little",
            "use more stages",
        ),
    ),
    Case(
        "a stage whose memory others hold",
        scheduler(
            "0/2 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s)."
            + PREEMPTION.format(2),
            asks={"memory": "6Gi"},
        ),
        "Unschedulable",
        (
            "1 has too little free memory (it requests 6 GiB; the largest node has 8 GiB, part of it is used",
            "1 has a taint that it does not tolerate",
            "add the toleration",
        ),
    ),
    Case(
        "a taint as older schedulers name it",
        scheduler(
            "0/1 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }."
            + PREEMPTION.format(1)
        ),
        "Unschedulable",
        ("the only node cannot run it", "{node-role.kubernetes.io/control-plane: }"),
    ),
    Case(
        "a GPU that no node offers",
        scheduler(
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu." + PREEMPTION.format(2),
            asks={"nvidia.com/gpu": "1"},
        ),
        "Unschedulable",
        (
            "2 have too little free nvidia.com/gpu",
            "it requests 1; the most on one node is 0, 1 too few",
            "set device to CPU",
        ),
    ),
    Case(
        "a selector that no node matches",
        scheduler(
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn't match Pod's node "
            "affinity/selector." + PREEMPTION.format(3)
        ),
        "Unschedulable",
        ("1 is cordoned", "2 do not match its nodeSelector or affinity", "correct the template, or label a node"),
    ),
    Case(
        "a selector that its template has",
        scheduler(
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector." + PREEMPTION.format(1),
            selector={"zone": "b", "disk": "ssd"},
        ),
        "Unschedulable",
        ("1 does not match its nodeSelector disk=ssd,zone=b", "correct the template, or label a node"),
    ),
    Case(
        "a cluster without nodes",
        scheduler("0/0 nodes are available: no nodes available to schedule pods."),
        "Unschedulable",
        ("the cluster has no node",),
    ),
    Case(
        "a claim that is not there",
        lambda cluster: void(
            unscheduled(
                cluster.pod("store"),
                '0/2 nodes are available: persistentvolumeclaim "weights" not found.' + PREEMPTION.format(2),
            )
        ),
        "MissingClaim",
        ("the weights store", "PersistentVolumeClaim weights", "spec.model.source"),
        also="WeightsAvailable",
    ),
    Case(
        "an image that is not there",
        stage_waits("ErrImagePull", PULL_ERROR),
        "ImagePullBackOff",
        (f"the image {IMAGE} cannot be pulled", "not found", "push it, or correct the image"),
    ),
    Case(
        "an image that is not there, held back",
        stage_waits("ImagePullBackOff", f'Back-off pulling image "{IMAGE}": ErrImagePull: {PULL_ERROR}'),
        "ImagePullBackOff",
        (f"the image {IMAGE} cannot be pulled", "not found"),
    ),
    Case(
        "a registry that asks for credentials",
        stage_waits(
            "ErrImagePull",
            f'rpc error: code = Unknown desc = failed to pull and unpack image "{IMAGE}": failed '
            "to resolve reference: pull access denied, repository does not exist or may require authorization: "
            "server message: insufficient_scope: authorization failed",
        ),
        "ImagePullBackOff",
        ("imagePullSecrets",),
    ),
    Case(
        "a name that is no image",
        stage_waits(
            "InvalidImageName",
            'Failed to apply default image tag "Node:1": couldn\'t parse image name "Node:1": invalid '
            "reference format: repository name must be lowercase",
        ),
        "InvalidImageName",
        ("is not a valid image name",),
    ),
    Case(
        "a pull policy of Never",
        stage_waits("ErrImageNeverPull", f'Container image "{IMAGE}" is not present with pull policy of Never'),
        "ErrImageNeverPull",
        ("node n1", "IfNotPresent"),
    ),
    Case(
        "a root image",
        stage_waits(
            "CreateContainerConfigError",
            'container has runAsNonRoot and image will run as root (pod: "smol-stage_models(0c5b)", container: stage)',
        ),
        "CreateContainerConfigError",
        ("runAsNonRoot",),
    ),
    Case(
        "a runtime that cannot start it",
        stage_waits(
            "RunContainerError",
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
            'exec: "languagepipes-node": executable file not found in $PATH',
        ),
        "CreateContainerError",
        ("executable file not found", "node n1"),
    ),
    Case(
        "no API keys",
        mount_fails("end-model", 'MountVolume.SetUp failed for volume "keys" : secret "keys" not found'),
        "MissingSecret",
        ("the End Model", "Secret keys", "spec.server.apiKeysSecretRef", "create it"),
        spec=KEYS,
        also="EndpointReady",
    ),
    Case(
        "no Hub token",
        mount_fails("store", 'MountVolume.SetUp failed for volume "token" : secret "hf" not found'),
        "MissingSecret",
        ("the weights store", "Secret hf", "spec.model.tokenSecretRef"),
        spec=TOKEN,
        also="WeightsAvailable",
    ),
    Case(
        "a Hub token under another key",
        mount_fails("store", 'MountVolume.SetUp failed for volume "token" : references non-existent secret key: token'),
        "MissingSecretKey",
        ("Secret hf has no key token", "spec.model.tokenSecretRef.key"),
        spec=TOKEN,
        also="WeightsAvailable",
    ),
    Case(
        "no Secret of a template's volume",
        mount_fails("end-model", 'MountVolume.SetUp failed for volume "vault" : secret "vault" not found'),
        "MissingSecret",
        ("the End Model", "Secret vault", "spec.endModel.template.volumes", "create it"),
        spec=VOLUMES,
        also="EndpointReady",
    ),
    Case(
        "no ConfigMap of a template's volume",
        mount_fails("end-model", 'MountVolume.SetUp failed for volume "ca" : configmap "corporate" not found'),
        "CreateContainerConfigError",
        ("the End Model", "ConfigMap corporate", "spec.endModel.template.volumes", "create it"),
        spec=VOLUMES,
        also="EndpointReady",
    ),
    Case(
        "a leaf that is not made yet",
        mount_fails("store", 'MountVolume.SetUp failed for volume "tls" : secret "smol-store-tls-1a2b3c4d" not found'),
        "FailedMount",
        ("its certificate", "the operator creates it"),
        also="WeightsAvailable",
    ),
    Case(
        "a plan that is not there",
        mount_fails(
            "end-model", 'MountVolume.SetUp failed for volume "plan" : configmap "smol-plan-1a2b3c4d" not found'
        ),
        "MissingConfigMap",
        ("smol-plan-1a2b3c4d",),
        also="EndpointReady",
    ),
    Case(
        "another mount that fails",
        mount_fails(
            "store",
            'MountVolume.MountDevice failed for volume "pvc-2f6d" : rpc error: code = Internal desc = no such disk',
        ),
        "FailedMount",
        ("no such disk",),
        also="WeightsAvailable",
    ),
    Case(
        "no network for the sandbox",
        stage_waits(
            "ContainerCreating",
            "",
            warning(
                "FailedCreatePodSandBox",
                "Failed to create pod sandbox: rpc error: code = "
                'Unknown desc = failed to setup network for sandbox "'
                + "0a1b2c3d" * 8
                + '": plugin type="bridge" failed (add)',
            ),
            sandbox="False",
        ),
        "SandboxFailed",
        ('sandbox "…"', "node n1", "network plugin"),
    ),
    Case("an image that takes minutes", stage_waits("ContainerCreating"), "SlowStart", ("more than 5 minutes", IMAGE)),
    Case(
        "a stage out of memory",
        stage_ends(code=137, reason="OOMKilled"),
        "OOMKilled",
        ("stage stage-2", "memory limit of 1Gi", "raise memory in its template, or use more stages"),
    ),
    Case(
        "an End Model out of memory",
        lambda cluster: void(ended(cluster.pod("end-model"), code=137, reason="OOMKilled")),
        "OOMKilled",
        ("the End Model", "endModel.template", "localLayers"),
        also="EndpointReady",
    ),
    Case(
        "a store out of memory",
        lambda cluster: void(ended(cluster.pod("store"), code=137, reason="OOMKilled")),
        "OOMKilled",
        ("the weights store", "safetensors"),
        also="WeightsAvailable",
    ),
    Case(
        "a crash loop with termination message",
        stage_ends(
            code=1, message="UnsupportedArchitecture: family gpt_neox is not served\n", restarts=4, back_off=True
        ),
        "CrashLoopBackOff",
        (
            "exit code 1 (Error) repeatedly",
            "termination message: UnsupportedArchitecture: family gpt_neox is not served",
            f"kubectl logs {STAGE_2} --previous",
        ),
    ),
    Case(
        "a crash loop for want of a module",
        stage_ends(
            code=1,
            message="MissingModule: the node image lacks the Python module transformers: use an image built from this "
            "version's Dockerfile.node",
            restarts=4,
            back_off=True,
        ),
        "CrashLoopBackOff",
        ("MissingModule: the node image lacks the Python module transformers", "Dockerfile.node"),
    ),
    Case(
        "the third start of a crash loop",
        stage_ends(code=1, restarts=3),
        "CrashLoopBackOff",
        ("it left no termination message",),
    ),
    Case("a first crash", stage_ends(code=139), "ContainerFailed", ("exit code 139", "was restarted")),
    Case(
        "an entry point that cannot run",
        stage_ends(code=128, reason="StartError", message='exec: "languagepipes-node": not found'),
        "CreateContainerError",
        ("not found",),
    ),
    Case(
        "a liveness probe that failed",
        lambda cluster: (
            void(ended(cluster.pod("stage", stage=2), code=137)),
            cluster.events.update(
                {
                    f"Pod/{STAGE_2}": (
                        warning("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503"),
                    )
                }
            ),
        )[0],
        "ProbeFailed",
        ("did not answer its probe",),
    ),
    Case("a member that gave up", member_gave_up, "MemberFailed", ("the plan file holds no plan",)),
    Case("an evicted pod", evicted, "Evicted", ("node n1 evicted its pod", "low on resource: memory", "request")),
    Case(
        "a pod that the kubelet refused", rejected, "PodRejected", ("OutOfmemory", "Node didn't have enough resource")
    ),
    Case("a silent node", node_went_silent, "NodeLost", ("node n1 does not answer", "30 seconds after")),
    Case(
        "a node that was given up",
        node_was_given_up,
        "NodeLost",
        ("node n1 does not answer", "is being started on node n2"),
    ),
    Case(
        "a quota",
        refused(
            "exceeded quota: small, requested: requests.memory=1Gi, used: requests.memory=3Gi, limited: "
            "requests.memory=3Gi"
        ),
        "QuotaExceeded",
        ("stage stage-2", "limited: requests.memory=3Gi", "raise the quota"),
    ),
    Case(
        "a Pod Security level",
        refused(
            'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
            '(container "sidecar" must set securityContext.allowPrivilegeEscalation=false)'
        ),
        "PodSecurityDenied",
        ('container "sidecar"', "webhook"),
    ),
    Case(
        "no such PriorityClass",
        refused("no PriorityClass with name high was found"),
        "MissingPriorityClass",
        ("no PriorityClass with name high", "priorityClassName"),
    ),
    Case(
        "no such RuntimeClass",
        refused('pod rejected: RuntimeClass "nvidia" not found'),
        "MissingRuntimeClass",
        ('RuntimeClass "nvidia"', "runtimeClassName"),
    ),
    Case(
        "a quota on a resource that nobody names",
        refused("failed quota: compute: must specify limits.cpu for: stage"),
        "PodRefused",
        ("ResourceQuota of the namespace needs limits.cpu", "resources in its template", "spec.store.template"),
    ),
    Case(
        "no such ServiceAccount",
        refused('error looking up service account ml/reader: serviceaccount "reader" not found'),
        "MissingServiceAccount",
        ("no ServiceAccount reader", "serviceAccountName"),
    ),
    Case(
        "a LimitRange",
        refused("maximum memory usage per Container is 512Mi, but limit is 1Gi"),
        "PodRefused",
        ("maximum memory usage per Container is 512Mi",),
    ),
    Case(
        "no such StorageClass",
        claim("Pending", "fast", warning("ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found')),
        "MissingStorageClass",
        ("StorageClass fast", "spec.cache.storageClassName", "(kubectl delete pvc smol-cache-1a2b3c4d)"),
        also="WeightsAvailable",
    ),
    Case(
        "no default StorageClass",
        claim("Pending", None),
        "NoDefaultStorageClass",
        ("no default", "spec.cache.storageClassName"),
        also="WeightsAvailable",
    ),
    Case(
        "a provisioner that fails",
        claim(
            "Pending",
            "local",
            warning(
                "ProvisioningFailed",
                'failed to provision volume with StorageClass "local": rpc error: code = ResourceExhausted '
                "desc = not enough free space, request 0c5b2f6d-8d1e-4f0a-9b1c-2f0a5d3b7c11",
            ),
        ),
        "ProvisioningFailed",
        ("StorageClass local", "not enough free space"),
        also="WeightsAvailable",
    ),
    Case(
        "a provisioner that takes its time",
        claim("Pending", "slow"),
        "VolumePending",
        ("kubectl describe pvc",),
        also="WeightsAvailable",
    ),
    Case(
        "a lost volume",
        claim("Lost", "local"),
        "VolumeLost",
        ("delete the claim", "downloads the weights again"),
        also="WeightsAvailable",
    ),
    Case(
        "a gated repository", store_says("GatedRepository", GATED), "GatedRepository", (GATED,), also="WeightsAvailable"
    ),
    Case(
        "a Hub that is away",
        store_says("SourceUnreachable", "https://huggingface.co: 503", failed=False),
        "SourceUnreachable",
        ("503",),
        also="WeightsAvailable",
    ),
    Case(
        "a store that the operator does not reach",
        store_is_silent,
        "StoreUnavailable",
        ("port 7443", "NetworkPolic"),
        also="WeightsAvailable",
    ),
    Case(
        "a spec that does not suit the model",
        refusal("TooManyStages", "40 stages, but 30 layers less 1 at the End Model leave 29: use at most 29 stages"),
        "TooManyStages",
        ("use at most 29 stages",),
        also="Planned",
    ),
    Case(
        "a Service of somebody else",
        foreign_service(None),
        "NameConflict",
        ("Service smol", "does not belong to the pipe", "kubectl delete service smol"),
        also="EndpointReady",
    ),
    Case(
        "a Service of another controller",
        foreign_service({"kind": "Blog", "name": "smol", "uid": "1", "controller": True}),
        "NameConflict",
        ("belongs to Blog smol",),
        also="EndpointReady",
    ),
    Case(
        "children of the pipe that was",
        foreign_service({"kind": "LanguagePipe", "name": "smol", "uid": "0", "controller": True}),
        "WaitingForDeletion",
        ("a deleted pipe of the same name", "garbage collector"),
        also="EndpointReady",
    ),
    Case(
        "a claim that cannot shrink",
        denied(
            'PersistentVolumeClaim/smol-cache-1a2b3c4d: PersistentVolumeClaim "smol-cache-1a2b3c4d" is invalid: '
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
        ),
        "ChildRefused",
        ("PersistentVolumeClaim smol-cache-1a2b3c4d is refused", "can not be less than status.capacity"),
        also="EndpointReady",
    ),
    Case(
        "a quota on claims",
        denied(
            'PersistentVolumeClaim/smol-cache-1a2b3c4d: persistentvolumeclaims "smol-cache-1a2b3c4d" is forbidden: '
            "exceeded quota: small, requested: requests.storage=40Gi, used: requests.storage=0, limited: "
            "requests.storage=1Gi"
        ),
        "QuotaExceeded",
        ("PersistentVolumeClaim smol-cache-1a2b3c4d", "limited: requests.storage=1Gi"),
        also="EndpointReady",
    ),
    Case(
        "a broken ring",
        ring_is_down,
        "RingDown",
        ("the End Model", "stage 2 closed the link: no bytes for 1.0 s", "NetworkPolicies"),
        also="EndpointReady",
    ),
)
