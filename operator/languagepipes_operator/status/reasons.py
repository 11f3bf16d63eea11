"""Every reason that the operator itself gives: what it means and what to do. The table is in docs/troubleshooting.md.

The reasons of the planner (`planning`) and of the store (`languagepipes_node.weights.errors`) are reported unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One reason. needs_person: waiting does not help. normal: it is no failure."""

    meaning: str
    remedy: str = ""
    needs_person: bool = True
    normal: bool = False


def _normal(meaning: str, remedy: str = "") -> Reason:
    return Reason(meaning, remedy, needs_person=False, normal=True)


def _passing(meaning: str, remedy: str) -> Reason:
    return Reason(meaning, remedy, needs_person=False)


REASONS: dict[str, Reason] = {
    # Nothing is wrong.
    "Ready": _normal("every replica runs the plan and passed its ring health check"),
    "EndpointReady": _normal("at least one replica answers, of this plan or an earlier one"),
    "Planned": _normal("there is a plan for the current spec"),
    "WeightsAvailable": _normal("the weights store has verified every file and serves them"),
    "StagesReady": _normal("every stage of every replica has loaded its layers and accepts connections"),
    "Recovered": _normal("an Event's reason: every replica is ready again, after one was not"),
    "Complete": _normal("the operator has nothing left to do"),
    "AsAsked": _normal("every replica that `spec.replicas` asks for is ready"),
    "ScaledToZero": _normal(
        "`spec.replicas` is 0: no replica runs, or the last ones are being stopped; the weights store keeps running",
        "raise `spec.replicas`",
    ),
    "Idle": _normal(
        "no request came for `spec.autoscaling.scaleDownDelaySeconds`: the stages are stopped, the End Model stays, "
        "and requests wait there until the stages are back"
    ),
    "Waking": _normal(
        "a request came to an idle pipe: its stages are being started, and the request waits",
        "wait; the message names what is awaited, and for how long requests wait (`spec.recovery`)",
    ),
    "ScalingUp": _normal("enough replicas are ready, and autoscaling is adding others"),
    "Autoscaling": _normal("the operator decides the number of replicas (`status.desiredReplicas`)"),
    "StoreStarting": _normal("the pod of the weights store is starting"),
    "WaitingForFacts": _normal("the weights store is reading the file headers of the model; the plan needs them"),
    "Resolving": _normal("the weights store is resolving the source's revision to a commit and listing the files"),
    "Downloading": _normal("the weights store is downloading files; `status.progress` shows how much is done"),
    "Verifying": _normal("the weights store is verifying the SHA-256 of its files"),
    "Converting": _normal("the weights store is converting a GGUF file to safetensors"),
    "StagesStarting": _normal("stages are being scheduled, are starting, or are loading their layers"),
    "JoiningRing": _normal("the stages are ready; the End Model is starting or waits for its first ring health check"),
    "RollingOut": _normal("replicas of another revision are being replaced, or a replica goes"),
    "NodeDraining": _normal(
        "the End Model of a replica is on a node that is being emptied (cordoned, or marked by an autoscaler); the "
        "replica serves until one on other nodes is ready",
        "to keep it there, `kubectl uncordon` the node",
    ),
    "NotPlanned": _normal("there is no plan yet, so there are no stages", "see the condition Planned"),
    "Paused": _normal(
        "`spec.paused` is true: the operator changes no object of the pipe; of Ready: and the spec is not what runs",
        "set `spec.paused` to false; the message names what changes then",
    ),
    # The pipe's own objects cannot be created.
    "InvalidSpec": Reason(
        "this operator cannot read the resource",
        "correct the field that the message names; after an upgrade of the CRD, upgrade the operator too",
    ),
    "NameConflict": Reason(
        "an object that does not belong to the pipe has a name that the pipe needs",
        "delete or rename that object, or rename the pipe",
    ),
    "WaitingForDeletion": _passing(
        "objects of a deleted pipe of the same name still exist",
        "wait for Kubernetes' garbage collector; it takes seconds",
    ),
    "QuotaExceeded": Reason(
        "an object of the pipe exceeds the namespace's ResourceQuota",
        "raise the quota, or use fewer replicas, stages or resources",
    ),
    "PodSecurityDenied": Reason(
        "the namespace's Pod Security level refuses the pod",
        "the pods meet `restricted`: remove what the template or a mutating webhook added",
    ),
    "MissingPriorityClass": Reason(
        "the template names a PriorityClass that does not exist", "create it, or correct `priorityClassName`"
    ),
    "MissingRuntimeClass": Reason(
        "the template names a RuntimeClass that does not exist", "create it, or correct `runtimeClassName`"
    ),
    "MissingServiceAccount": Reason(
        "the template names a ServiceAccount that does not exist", "create it, or correct `serviceAccountName`"
    ),
    "ChildRefused": Reason(
        "the API server or an admission webhook refuses an object of the pipe",
        "the message names it and quotes why; a cache's claim cannot change its class",
    ),
    "PodRefused": Reason("the API server or an admission webhook refuses the pod", "the message quotes why"),
    # The store's volume.
    "MissingStorageClass": Reason(
        "the cache's volume claim names a StorageClass that does not exist",
        "create it, or delete the claim after correcting `spec.cache.storageClassName`",
    ),
    "NoDefaultStorageClass": Reason(
        "the cache's volume claim names no StorageClass and the cluster has no default",
        "set `spec.cache.storageClassName`, or mark a class as the default",
    ),
    "ProvisioningFailed": Reason(
        "the StorageClass's provisioner could not create the volume", "the message quotes the provisioner"
    ),
    "VolumePending": _passing("the cache's volume does not exist yet", "see `kubectl describe pvc`"),
    "VolumeLost": Reason(
        "the volume of the cache's claim does not exist any more",
        "delete the claim: the operator creates a new one and downloads the weights again",
    ),
    "MissingClaim": Reason(
        "the claim that `spec.model.source` (pvc://) names does not exist",
        "create it in the pipe's namespace, or correct the source",
    ),
    # Pods that cannot start.
    "MissingSecret": Reason(
        "a Secret that the spec names does not exist",
        "create it in the pipe's namespace, or correct the field that the message names",
    ),
    "MissingSecretKey": Reason(
        "a Secret that the spec names has no such key",
        "add the key to the Secret, or correct `spec.model.tokenSecretRef.key`",
    ),
    "MissingConfigMap": _passing(
        "a ConfigMap of the pipe does not exist yet", "the operator creates it again: see its log"
    ),
    "FailedMount": _passing("a volume of the pod cannot be mounted", "the message quotes the kubelet"),
    "Unschedulable": Reason(
        "no node can run the pod",
        "free or add that resource, request less (more stages, a shorter context), or correct the template",
    ),
    "ImagePullBackOff": Reason(
        "the image cannot be pulled",
        "correct the image that the operator was installed with, or give the template `imagePullSecrets`",
    ),
    "InvalidImageName": Reason(
        "the image's name is not valid", "correct the image that the operator was installed with"
    ),
    "ErrImageNeverPull": Reason(
        "the pull policy is Never and the node has no such image",
        "load the image on the node, or set the pull policy to IfNotPresent",
    ),
    "CreateContainerConfigError": Reason(
        "the kubelet cannot configure the container", "the message quotes the kubelet"
    ),
    "CreateContainerError": Reason(
        "the container runtime cannot create or start the container",
        "the message quotes the runtime; with a GPU, see `runtimeClassName`",
    ),
    "SandboxFailed": Reason(
        "the node cannot create the pod's sandbox (network, runtime class)",
        "the message quotes the kubelet; see the node's CNI and container runtime",
    ),
    "SlowStart": _passing(
        "the container has not started for more than 5 minutes",
        "the node may still be pulling a large image; see `kubectl describe pod`",
    ),
    # Pods that end.
    "OOMKilled": Reason(
        "the kernel stopped a container that needed more memory than its limit",
        "raise the memory in the template, or use more stages or a shorter `maxContextLength`",
    ),
    "CrashLoopBackOff": Reason(
        "a container ends repeatedly", "the message quotes its termination message; see `kubectl logs --previous`"
    ),
    "ContainerFailed": _passing(
        "a container ended and was restarted", "wait; if it goes on, see `kubectl logs --previous`"
    ),
    "ProbeFailed": _passing(
        "the kubelet restarted a container that did not answer its probe",
        "see its log; a member that loads is restarted after a minute without progress",
    ),
    "MemberFailed": Reason("a member failed and does not try again", "the message quotes the member"),
    "Evicted": _passing(
        "the node evicted the pod because a resource ran low; a new pod is being started",
        "raise the pod's requests to what it needs, or add that resource to the node",
    ),
    "PodRejected": _passing(
        "the node refused the pod that the scheduler assigned to it; a new pod is being started",
        "the message quotes the kubelet",
    ),
    "NodeLost": _passing(
        "the node does not answer; the pod is started on another node 30 s after Kubernetes marks it unreachable",
        "repair the node, or delete it",
    ),
    # Members that run without serving.
    "StoreUnavailable": _passing(
        "the weights store is running but does not answer the operator; a running ring does not need it",
        "check that NetworkPolicies allow the operator to connect, and read the store's log",
    ),
    "Recovering": _passing(
        "a replica has lost a member or its ring; its requests wait",
        "wait; the message names what is awaited, and for how long requests wait (`spec.recovery`)",
    ),
    "EvictionAdmitted": Reason(
        "an End Model is on a node that is being emptied, and no replica can take over, or none was ready in time: it "
        "may be evicted, which ends the requests there",
        "the message quotes why: uncordon the node, make room on others, or allow `spec.rollout.maxSurge`",
    ),
    "ProgressDeadlineExceeded": Reason(
        "a replica of a new revision was not ready in time (`spec.rollout.progressDeadlineSeconds`); the earlier "
        "replicas go on serving",
        "the message quotes why: correct the spec, or set the old one again",
    ),
    "GaveWay": _passing(
        "not all pods of a replica found a node in time, so it was stopped: half a ring holds what others may need",
        "it is tried again when there is room; add what the scheduler's words name, or use fewer or smaller stages",
    ),
    "RingDown": _passing(
        "all members are running, but the ring health check fails",
        "the message quotes the End Model; check the NetworkPolicies and read the members' logs",
    ),
    "FewerReplicas": _passing(
        "fewer replicas are ready than `spec.replicas` asks for, outside a rollout", "see the condition Ready"
    ),
    "ReplicasIgnored": Reason(
        "a HorizontalPodAutoscaler, or `kubectl scale`, sets `spec.replicas`, which is not used with "
        "`spec.autoscaling`",
        "delete the HorizontalPodAutoscaler, or remove `spec.autoscaling`",
    ),
    "LoadUnknown": _passing(
        "the operator cannot ask an End Model how many requests it has, so the number of replicas does not fall",
        "check that NetworkPolicies allow the operator to connect to port 9090 of the pipe's pods",
    ),
}
