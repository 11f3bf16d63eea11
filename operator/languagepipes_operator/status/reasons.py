"""Every reason that the operator gives for itself: what it means and what helps. docs/troubleshooting.md is its table.

The planner's reasons (`planning`) and the store's (`languagepipes_node.weights.errors`) are passed on as they are said.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One word, explained. needs_person: nothing gets better by waiting. normal: no failure at all."""

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
    "Ready": _normal("every replica runs the plan, and a token went round each ring"),
    "EndpointReady": _normal("at least one replica answers, of whatever plan"),
    "Planned": _normal("there is a plan for the spec as it stands"),
    "WeightsAvailable": _normal("the weights store has every file, verified"),
    "StagesReady": _normal("every stage of every replica is loaded and listening"),
    "Complete": _normal("nothing is under way"),
    "AsAsked": _normal("there are as many replicas as asked"),
    "ScaledToZero": _normal("`spec.replicas` is 0: nothing answers, the weights store stays", "raise `spec.replicas`"),
    "StoreStarting": _normal("the weights store's pod is being started"),
    "WaitingForFacts": _normal("the weights store is reading the model's headers; then the layers are split"),
    "Resolving": _normal("the weights store is turning the source's revision into a commit and listing the files"),
    "Downloading": _normal("the weights store is fetching files; `status.progress` says how far"),
    "Verifying": _normal("the weights store is hashing what it has"),
    "Converting": _normal("the weights store is converting a GGUF file to safetensors"),
    "StagesStarting": _normal("stages are being placed, started, or are loading their layers"),
    "JoiningRing": _normal("the stages are ready, and the End Model has not yet seen a token come round"),
    "RollingOut": _normal("pods of another plan are being replaced"),
    "NotPlanned": _normal("there is no plan yet, so there is nothing to be ready", "see the condition Planned"),
    "Paused": _normal("`spec.paused` is true: children are left as they are", "set `spec.paused` to false"),
    # The pipe's own objects cannot be made.
    "InvalidSpec": Reason("this operator cannot read the resource", "correct the field that the message names; "
                          "after an upgrade of the CRD, upgrade the operator too"),
    "NameConflict": Reason("an object that belongs to somebody else has a name that the pipe needs",
                           "delete or rename that object, or rename the pipe"),
    "WaitingForDeletion": _passing("children of a deleted pipe of the same name still exist",
                                   "wait for Kubernetes' garbage collector; it takes seconds"),
    "QuotaExceeded": Reason("the namespace's ResourceQuota does not allow it",
                            "raise the quota, or ask for fewer replicas, stages or resources"),
    "PodSecurityDenied": Reason("the namespace's Pod Security level refuses the pod",
                                "the pods meet `restricted`: remove what the template or a mutating webhook added"),
    "MissingPriorityClass": Reason("the template names a PriorityClass that does not exist",
                                   "create it, or correct `priorityClassName`"),
    "MissingRuntimeClass": Reason("the template names a RuntimeClass that does not exist",
                                  "create it, or correct `runtimeClassName`"),
    "ChildRefused": Reason("the API server or an admission webhook refuses an object of the pipe",
                           "the message names it and quotes why; a cache's claim cannot change its class"),
    "PodRefused": Reason("the API server or an admission webhook refuses the pod", "the message quotes why"),
    # The store's volume.
    "MissingStorageClass": Reason("the cache's volume claim names a StorageClass that does not exist",
                                  "create it, or delete the claim after correcting `spec.cache.storageClassName`"),
    "NoDefaultStorageClass": Reason("the cache's volume claim names no StorageClass and the cluster has no default",
                                    "set `spec.cache.storageClassName`, or mark a class as the default"),
    "ProvisioningFailed": Reason("the StorageClass's provisioner could not make the volume",
                                 "the message quotes the provisioner"),
    "VolumePending": _passing("the cache's volume is not there yet", "see `kubectl describe pvc`"),
    "VolumeLost": Reason("the volume behind the cache's claim is gone",
                         "delete the claim: the operator makes another, and the weights are fetched again"),
    "MissingClaim": Reason("the claim that `spec.model.source` (pvc://) names does not exist",
                           "create it in the pipe's namespace, or correct the source"),
    # Pods that cannot start.
    "MissingSecret": Reason("a Secret that the spec names does not exist",
                            "create it in the pipe's namespace, or correct the field that the message names"),
    "MissingSecretKey": Reason("a Secret that the spec names has no such key",
                               "add the key to the Secret, or correct `spec.model.tokenSecretRef.key`"),
    "MissingConfigMap": _passing("a ConfigMap of the pipe is not there yet", "the operator makes it again: see its log"
                                 ),
    "FailedMount": _passing("a volume of the pod cannot be mounted", "the message quotes the kubelet"),
    "Unschedulable": Reason("no node can take the pod", "free or add the resource that is short, ask for less (more "
                            "stages, a shorter context), or correct the template"),
    "ImagePullBackOff": Reason("the image cannot be pulled", "correct the image that the operator was installed with, "
                               "or give the template `imagePullSecrets`"),
    "InvalidImageName": Reason("the image's name is not one", "correct the image that the operator was installed with"),
    "ErrImageNeverPull": Reason("the pull policy is Never and the node has no such image",
                                "load the image on the node, or set the pull policy to IfNotPresent"),
    "CreateContainerConfigError": Reason("the container's configuration cannot be put together",
                                         "the message quotes the kubelet"),
    "CreateContainerError": Reason("the container runtime cannot create or start the container",
                                   "the message quotes the runtime; with a GPU, see `runtimeClassName`"),
    "SandboxFailed": Reason("the node cannot make the pod's sandbox (network, runtime class)",
                            "the message quotes the kubelet; see the node's CNI and container runtime"),
    "SlowStart": _passing("the container has not started for minutes",
                          "a large image may still be being pulled; see `kubectl describe pod`"),
    # Pods that do not stay.
    "OOMKilled": Reason("the kernel ended a container that needed more memory than its limit",
                        "raise the memory in the template, or take more stages or a shorter `maxContextLength`"),
    "CrashLoopBackOff": Reason("a container ends again and again", "its termination message are in the message; see "
                               "`kubectl logs --previous`"),
    "ContainerFailed": _passing("a container ended and was started again", "wait; if it goes on, see "
                                "`kubectl logs --previous`"),
    "ProbeFailed": _passing("the kubelet ended a container that did not answer its probe",
                            "see its log; a loading member is ended after a minute without progress"),
    "MemberFailed": Reason("a member runs and has given up", "the message has its own words"),
    "Evicted": _passing("the node was short of a resource and ended the pod; another is being started",
                        "give the pod requests that are true, or the node more of that resource"),
    "PodRejected": _passing("the node refused the pod that the scheduler gave it; another is being started",
                            "the message quotes the kubelet"),
    "NodeLost": _passing("the node does not answer; the pod is started elsewhere 30 s after Kubernetes gives it up",
                         "repair the node, or delete it"),
    # What runs and is not whole.
    "StoreUnavailable": _passing("the weights store is up and does not answer the operator; a ring goes on without it",
                                 "see that NetworkPolicies let the operator in, and the store's log"),
    "RingDown": _passing("all members are up, and no token goes round the ring",
                         "the message has the End Model's own words; see NetworkPolicies and the members' logs"),
    "FewerReplicas": _passing("fewer replicas answer than asked, and nothing is being rolled out",
                              "see the condition Ready"),
}  # fmt: skip
