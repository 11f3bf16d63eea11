"""Resources that must be refused, and what a user reads. Each is a good one with its spec (or more) changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

GOOD = """
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {name: qwen3}
spec:
  model: {source: "hf://Qwen/Qwen3-8B"}
  stages: {count: 3}
"""


@dataclass(frozen=True)
class Wrong:
    """change: YAML merged into GOOD; a `$remove` value takes the field away. messages: all that `load_pipe` says."""

    name: str
    change: str
    messages: tuple[str, ...]
    local: bool = False

    @property
    def resource(self) -> Any:
        return merged(yaml.safe_load(GOOD), yaml.safe_load(self.change))


def merged(base: Any, change: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    result = dict(base)
    for key, value in change.items():
        if value == "$remove":
            result.pop(key, None)
        else:
            result[key] = merged(result[key], value) if key in result else value
    return result


def _model(field: str, *messages: str, local: bool = False) -> Wrong:
    return Wrong(f"model {field}", f"spec: {{model: {{{field}}}}}", messages, local)


def _stages(text: str, *messages: str) -> Wrong:
    return Wrong(f"stages {text}", f"spec: {{stages: {{{text}}}}}", messages)


def _list(entries: str, *messages: str) -> Wrong:
    return _stages(f"count: $remove, list: {entries}", *messages)


def _template(text: str, *messages: str) -> Wrong:
    """messages: paths from the template on."""
    whole = tuple(f"spec.endModel.template.{message}" for message in messages)
    return Wrong(f"template {text}", f"spec: {{endModel: {{template: {{{text}}}}}}}", whole)


def _node_affinity(requirement: str, *messages: str) -> Wrong:
    """messages: paths from the requirement on."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    term = f"nodeSelectorTerms: [{{matchExpressions: [{{{requirement}}}]}}]"
    path = f"affinity.nodeAffinity.{required}.nodeSelectorTerms[0].matchExpressions[0]"
    return _template(
        f"affinity: {{nodeAffinity: {{{required}: {{{term}}}}}}}", *(f"{path}.{message}" for message in messages)
    )


_NAME = "metadata.name must be a DNS label of at most 40 characters: a-z, 0-9 and -, starting with a letter"
_DEFAULT_PORT = "browsers leave the default port out of an origin (443 with https, 80 with http): leave it out too"
_SCHEMES = "source must start with hf://, pvc:// or https:// (file:// is for `languagepipes up` alone)"
_HUB = "an hf:// source is hf://OWNER/NAME, or hf://OWNER/NAME/FILE.gguf for one GGUF file"
_VOLUME = (
    "a pvc:// source is pvc://CLAIM/PATH, with names of letters, digits, dots, _ and - in PATH, and without . and .."
)
_HTTPS = (
    "an https:// source is https://HOST/PATH or https://HOST:PORT/PATH with a port from 1 to 65535, without user, "
    "password, query or fragment"
)
_SECRET = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_SOURCE = "spec.model.source"
_KEY = "a key of {} is [PREFIX/]NAME: PREFIX a DNS name, NAME at most 63 letters, digits, -, _ and ."
_FREE_LABELS = (
    "labels takes no key of the operator or of Kubernetes (languagepipes.io/…, app.kubernetes.io/managed-by, "
    "pod-template-hash): choose another key"
)
_OUR_VARIABLE = "the operator sets this variable: remove it (LANGUAGEPIPES_…, CUDA_VISIBLE_DEVICES, HF_ENDPOINT, HOME)"
_ONE_SOURCE = "valueFrom has exactly one of secretKeyRef, configMapKeyRef and fieldRef"

WRONG = (
    # the name
    Wrong("capitals", "metadata: {name: Qwen3}", (f"metadata.name: 'Qwen3': {_NAME}",)),
    Wrong("41 characters", f"metadata: {{name: {'a' * 41}}}", (f"metadata.name: '{'a' * 41}': {_NAME}",)),
    Wrong("a dot", "metadata: {name: qwen.3}", (f"metadata.name: 'qwen.3': {_NAME}",)),
    Wrong("a digit first", "metadata: {name: 3qwen}", (f"metadata.name: '3qwen': {_NAME}",)),
    Wrong("a hyphen last", "metadata: {name: qwen-}", (f"metadata.name: 'qwen-': {_NAME}",)),
    # the source
    _model("source: $remove", f"{_SOURCE}: is required"),
    _model("source: ''", f"{_SOURCE}: is empty; give it a value or remove it"),
    _model("source: Qwen/Qwen3-8B", f"{_SOURCE}: 'Qwen/Qwen3-8B': {_SCHEMES}"),
    _model("source: 'file:///models/x'", f"{_SOURCE}: 'file:///models/x': {_SCHEMES}"),
    _model("source: 'http://mirror/x'", f"{_SOURCE}: 'http://mirror/x': {_SCHEMES}"),
    _model("source: 'hf://Qwen3-8B'", f"{_SOURCE}: 'hf://Qwen3-8B': {_HUB}"),
    _model("source: 'hf://Qwen/Qwen3-8B/../x.gguf'", f"{_SOURCE}: 'hf://Qwen/Qwen3-8B/../x.gguf': {_HUB}"),
    _model("source: 'hf://a/b/c.bin'", f"{_SOURCE}: 'hf://a/b/c.bin': {_HUB}"),
    _model("source: 'pvc://Claim/x'", f"{_SOURCE}: 'pvc://Claim/x': {_VOLUME}"),
    _model("source: 'pvc://claim/../x'", f"{_SOURCE}: 'pvc://claim/../x': {_VOLUME}"),
    _model("source: 'https://u:p@host/x'", f"{_SOURCE}: 'https://u:p@host/x': {_HTTPS}"),
    _model("source: 'https://host/x?token=1'", f"{_SOURCE}: 'https://host/x?token=1': {_HTTPS}"),
    _model("source: 'https://host:0/x'", f"{_SOURCE}: 'https://host:0/x': {_HTTPS}"),
    _model("source: 'https://host:65536/x'", f"{_SOURCE}: 'https://host:65536/x': {_HTTPS}"),
    _model("source: 'https:///x'", f"{_SOURCE}: 'https:///x': {_HTTPS}"),
    _model(
        "source: 'pvc://claim/x'",
        f"{_SOURCE}: 'pvc://claim/x': source must start with hf://, https:// or file:// (pvc:// names a volume "
        "claim, which only a cluster has)",
        local=True,
    ),
    _model(
        "source: 'file://'",
        f"{_SOURCE}: 'file://': a file:// source is file:///ABSOLUTE/PATH, or file://RELATIVE/PATH seen from the "
        "YAML file",
        local=True,
    ),
    _model(
        "source: 'https://host/x', revision: main",
        "spec.model.revision: 'main': revision works with hf:// sources alone; remove it",
    ),
    _model(
        "source: 'pvc://claim/x', tokenSecretRef: {name: hf, key: token}",
        "spec.model.tokenSecretRef: tokenSecretRef works with hf:// sources alone; remove it",
    ),
    # the rest of the model
    _model("revision: 12345678", "spec.model.revision: 12345678 is not a string; write it in quotes"),
    _model("revision: ../x", "spec.model.revision: '../x' does not match ^[A-Za-z0-9][A-Za-z0-9._/-]*$"),
    _model("servedName: 'a b'", "spec.model.servedName: 'a b' does not match ^[A-Za-z0-9][A-Za-z0-9._:/-]*$"),
    _model(
        "toolParser: qwen_xml",
        "spec.model.toolParser: 'qwen_xml' is none of auto, hermes, qwen-xml, "
        "llama3-json, mistral, harmony, glm, gemma, deepseek; did you mean qwen-xml?",
    ),
    _model("servdName: a", "spec.model.servdName: unknown field; did you mean servedName?"),
    _model("served_name: a", "spec.model.served_name: unknown field; did you mean servedName?"),
    _model("tokenSecretRef: {name: hf}", "spec.model.tokenSecretRef.key: is required"),
    _model(
        "tokenSecretRef: {name: HF, key: token}",
        f"spec.model.tokenSecretRef.name: 'HF' does not match {_SECRET}",
    ),
    _model(
        "tokenSecretRef: {name: hf, key: a/b}",
        "spec.model.tokenSecretRef.key: 'a/b' does not match ^[-._a-zA-Z0-9]+$",
    ),
    _model("dtype: fp16", "spec.model.dtype: 'fp16' is none of float32, bfloat16, float16; did you mean float16?"),
    _model("dtype: int8", "spec.model.dtype: 'int8' is none of float32, bfloat16, float16"),
    _model("maxContextLength: 8", "spec.model.maxContextLength: 8 is less than 16"),
    _model("maxContextLength: 2000000", "spec.model.maxContextLength: 2000000 is more than 1048576"),
    _model(
        "maxContextLength: '8192'",
        "spec.model.maxContextLength: '8192' is not a whole number; write it without quotes",
    ),
    _model("maxContextLength: 81.5", "spec.model.maxContextLength: 81.5 is not a whole number"),
    _model("quantization: fp8", "spec.model.quantization: 'fp8' is none of none, int8, int4, asStored"),
    # replicas, and what works later
    Wrong("17 replicas", "spec: {replicas: 17}", ("spec.replicas: 17 is more than 16",)),
    Wrong("negative replicas", "spec: {replicas: -1}", ("spec.replicas: -1 is less than 0",)),
    Wrong("replicas: true", "spec: {replicas: true}", ("spec.replicas: true is not a whole number",)),
    Wrong(
        "an unknown field",
        "spec: {hue: red}",
        (
            "spec.hue: unknown field; known here: model, replicas, autoscaling, endModel, stages, server, recovery, "
            "rollout, placement, cache, store, networkPolicy, paused",
        ),
    ),
    # autoscaling
    Wrong(
        "fewest above most",
        "spec: {autoscaling: {minReplicas: 3, maxReplicas: 2}}",
        ("spec.autoscaling.minReplicas: 3: minReplicas is larger than maxReplicas: lower it, or raise maxReplicas",),
    ),
    # the End Model
    Wrong(
        "no local layers",
        "spec: {endModel: {localLayers: 0}}",
        ("spec.endModel.localLayers: 0 is less than 1",),
    ),
    Wrong(
        "negative tail",
        "spec: {endModel: {tailLayers: -1}}",
        ("spec.endModel.tailLayers: -1 is less than 0",),
    ),
    Wrong(
        "device in lower case",
        "spec: {endModel: {device: gpu}}",
        ("spec.endModel.device: 'gpu' is none of CPU, GPU; did you mean GPU?",),
    ),
    # stages
    Wrong("no stages", "spec: {stages: $remove}", ("spec.stages: is required",)),
    _stages("count: $remove", "spec.stages: stages has exactly one of count and list"),
    _stages("count: null", "spec.stages: stages has exactly one of count and list"),
    _stages("list: [{name: a}]", "spec.stages: stages has exactly one of count and list"),
    _stages("count: 0", "spec.stages.count: 0 is less than 1"),
    _stages("count: 65", "spec.stages.count: 65 is more than 64"),
    _list("[]", "spec.stages.list: has 0 entries, fewer than 1"),
    _list("{name: a}", "spec.stages.list: {'name': 'a'} is not a list"),
    _list("[gpu]", "spec.stages.list[0]: 'gpu' is not a mapping of fields"),
    _list("[{layers: 3}]", "spec.stages.list[0].name: is required"),
    _list("[{name: A}]", "spec.stages.list[0].name: 'A' does not match ^[a-z]([-a-z0-9]*[a-z0-9])?$"),
    _list(
        "[{name: store}]",
        "spec.stages.list[0].name: 'store': end-model and store are not free as stage names",
    ),
    _list("[{name: a}, {name: b}]", "spec.stages.list: at most one entry of list has neither layers nor memory"),
    _list("[{name: a, layers: 1}, {name: a}]", "spec.stages.list: stage names are unique"),
    _list("[{name: a, layers: 1, memory: 1Gi}]", "spec.stages.list[0]: a stage has layers or memory, not both"),
    _list("[{name: a, layers: 0}]", "spec.stages.list[0].layers: 0 is less than 1"),
    _list(
        "[{name: a, memory: 12GB}]",
        "spec.stages.list[0].memory: '12GB' is no amount of memory; write it like 12Gi, 500M or 1e9",
    ),
    _list(
        "[{name: a, memory: -1Gi}]",
        "spec.stages.list[0].memory: '-1Gi' is no amount of memory; write it like 12Gi, 500M or 1e9",
    ),
    _list("[{name: a, memory: 0}]", "spec.stages.list[0].memory: 0 is less than 1"),
    Wrong(
        "device beside a list",
        "spec: {stages: {count: $remove, device: GPU, list: [{name: a}]}}",
        ("spec.stages.device: 'GPU': device goes with count; in a list each entry has its own",),
    ),
    # the server
    Wrong(
        "no requests",
        "spec: {server: {maxConcurrentRequests: 0}}",
        ("spec.server.maxConcurrentRequests: 0 is less than 1",),
    ),
    Wrong(
        "a long queue",
        "spec: {server: {maxQueuedRequests: 100000}}",
        ("spec.server.maxQueuedRequests: 100000 is more than 65536",),
    ),
    Wrong(
        "a key in the API keys' reference",
        "spec: {server: {apiKeysSecretRef: {name: keys, key: a}}}",
        ("spec.server.apiKeysSecretRef.key: unknown field; known here: name",),
    ),
    Wrong(
        "defaults from elsewhere",
        "spec: {server: {generationConfig: vllm}}",
        ("spec.server.generationConfig: 'vllm' is none of auto, none",),
    ),
    Wrong(
        "scheduling policy",
        "spec: {server: {schedulingPolicy: fcfs}}",
        ("spec.server.schedulingPolicy: 'fcfs' is none of fair, priority",),
    ),
    Wrong(
        "a method of speculative decoding",
        "spec: {server: {speculativeDecoding: medusa}}",
        ("spec.server.speculativeDecoding: 'medusa' is none of auto, ngram, none",),
    ),
    Wrong(
        "an origin with a path",
        "spec: {server: {cors: {allowedOrigins: ['https://a.example/chat']}}}",
        (r"spec.server.cors.allowedOrigins[0]: 'https://a.example/chat' does not match ^(\*|https?://[^/?#,\s]+)$",),
    ),
    Wrong(
        "an origin with capitals",
        "spec: {server: {cors: {allowedOrigins: ['https://a.example', 'https://Chat.example']}}}",
        ("spec.server.cors.allowedOrigins: browsers send origins in small letters: write them so",),
    ),
    Wrong(
        "an origin with the default port of https",
        "spec: {server: {cors: {allowedOrigins: ['https://a.example:443']}}}",
        (f"spec.server.cors.allowedOrigins: {_DEFAULT_PORT}",),
    ),
    Wrong(
        "an origin with the default port of http",
        "spec: {server: {cors: {allowedOrigins: ['http://a.example', 'http://[::1]:80']}}}",
        (f"spec.server.cors.allowedOrigins: {_DEFAULT_PORT}",),
    ),
    Wrong(
        "no origins",
        "spec: {server: {cors: {allowedOrigins: []}}}",
        ("spec.server.cors.allowedOrigins: has 0 entries, fewer than 1",),
    ),
    Wrong(
        "cors without origins",
        "spec: {server: {cors: {}}}",
        ("spec.server.cors.allowedOrigins: is required",),
    ),
    Wrong(
        "fewer responses than none",
        "spec: {server: {storedResponses: {count: -1}}}",
        ("spec.server.storedResponses.count: -1 is less than 0",),
    ),
    # recovery
    Wrong(
        "a wait of more than an hour",
        "spec: {recovery: {maxWaitSeconds: 3601}}",
        ("spec.recovery.maxWaitSeconds: 3601 is more than 3600",),
    ),
    Wrong(
        "a wait with a unit",
        "spec: {recovery: {maxWaitSeconds: 5m}}",
        ("spec.recovery.maxWaitSeconds: '5m' is not a whole number",),
    ),
    Wrong(
        "fewer replays than none",
        "spec: {recovery: {maxReplays: -1}}",
        ("spec.recovery.maxReplays: -1 is less than 0",),
    ),
    Wrong(
        "replays beyond number",
        "spec: {recovery: {maxReplays: 101}}",
        ("spec.recovery.maxReplays: 101 is more than 100",),
    ),
    Wrong(
        "another word for a wait",
        "spec: {recovery: {maxWait: 5}}",
        ("spec.recovery.maxWait: unknown field; did you mean maxWaitSeconds?",),
    ),
    # rollouts
    Wrong(
        "a rollout that could replace nothing",
        "spec: {rollout: {maxSurge: 0}}",
        ("spec.rollout: maxSurge and maxUnavailable are both 0, so no replica could be replaced: raise one of them",),
    ),
    Wrong("17 more replicas", "spec: {rollout: {maxSurge: 17}}", ("spec.rollout.maxSurge: 17 is more than 16",)),
    Wrong(
        "a share of the replicas",
        "spec: {rollout: {maxUnavailable: 25%}}",
        ("spec.rollout.maxUnavailable: '25%' is not a whole number",),
    ),
    Wrong(
        "answers without an end",
        "spec: {rollout: {drainSeconds: 3601}}",
        ("spec.rollout.drainSeconds: 3601 is more than 3600",),
    ),
    Wrong(
        "a deadline that nothing meets",
        "spec: {rollout: {progressDeadlineSeconds: 9}}",
        ("spec.rollout.progressDeadlineSeconds: 9 is less than 10",),
    ),
    # the cache, network policies, a pause
    Wrong("cache without size", "spec: {cache: {}}", ("spec.cache.size: is required",)),
    Wrong("cache of nothing", "spec: {cache: {size: 0}}", ("spec.cache.size: 0 is less than 1",)),
    Wrong(
        "cache in unknown units",
        "spec: {cache: {size: 40GB}}",
        ("spec.cache.size: '40GB' is no amount of memory; write it like 12Gi, 500M or 1e9",),
    ),
    Wrong(
        "a StorageClass without a name",
        "spec: {cache: {size: 1Gi, storageClassName: ''}}",
        ("spec.cache.storageClassName: is empty; give it a value or remove it",),
    ),
    Wrong(
        "a quoted pause",
        "spec: {paused: 'true'}",
        ("spec.paused: 'true' is neither true nor false; write it without quotes",),
    ),
    Wrong("a pause in numbers", "spec: {paused: 1}", ("spec.paused: 1 is neither true nor false",)),
    Wrong(
        "an unknown network policy",
        "spec: {networkPolicy: {ingress: []}}",
        ("spec.networkPolicy.ingress: unknown field; known here: enabled",),
    ),
    # the store
    Wrong(
        "a store with pod affinity",
        "spec: {store: {template: {affinity: {}}}}",
        (
            "spec.store.template.affinity: unknown field; known here: resources, labels, annotations, env, envFrom, "
            "volumes, volumeMounts, nodeSelector, "
            "tolerations, priorityClassName, runtimeClassName, schedulerName, serviceAccountName, "
            "imagePullSecrets",
        ),
    ),
    Wrong(
        "a store's label of ours",
        "spec: {store: {template: {labels: {languagepipes.io/role: a}}}}",
        (f"spec.store.template.labels: {_FREE_LABELS}",),
    ),
    Wrong(
        "a bounded disk beside a volume",
        "spec: {cache: {size: 1Gi}, store: {ephemeralStorage: 1Gi}}",
        (
            "spec.store.ephemeralStorage: '1Gi': store.ephemeralStorage is the node's disk, and with cache the model's "
            "files are on a volume: remove one",
        ),
    ),
    # templates
    _stages(
        "count: $remove, template: {}, list: [{name: a}]",
        "spec.stages.template: template goes with count; in a list each entry has its own",
    ),
    _stages(
        f"template: {{nodeSelector: {{{', '.join(f'k{place}: a' for place in range(17))}}}}}",
        "spec.stages.template.nodeSelector: has 17 entries, more than 16",
    ),
    _list(
        "[{name: a, template: {imagePullSecrets: [pull]}}]",
        "spec.stages.list[0].template.imagePullSecrets[0]: 'pull' is not a mapping of fields",
    ),
    _template("nodeselector: {}", "nodeselector: unknown field; did you mean nodeSelector?"),
    _template(
        "initContainers: []",
        "initContainers: unknown field; known here: resources, labels, annotations, env, envFrom, volumes, "
        "volumeMounts, nodeSelector, tolerations, "
        "priorityClassName, runtimeClassName, schedulerName, serviceAccountName, imagePullSecrets, affinity, "
        "topologySpreadConstraints",
    ),
    _template(
        "volumes: [{name: a, hostPath: {path: /}}]",
        "volumes[0].hostPath: unknown field; known here: name, configMap, secret, emptyDir, persistentVolumeClaim, csi",
    ),
    _template(
        "volumes: [{name: a, emptyDir: {}, secret: {secretName: s}}]",
        "volumes[0]: a volume has exactly one of configMap, secret, emptyDir, persistentVolumeClaim and csi",
    ),
    _template(
        "volumes: [{name: a}]",
        "volumes[0]: a volume has exactly one of configMap, secret, emptyDir, persistentVolumeClaim and csi",
    ),
    _template(
        "volumes: [{name: tls, emptyDir: {}}]",
        "volumes[0].name: 'tls': the operator has a volume of that name (cache, hub-ca, keys, model, plan, tls, tmp, "
        "token): choose another",
    ),
    _template(
        "volumes: [{name: a, emptyDir: {}}, {name: a, emptyDir: {medium: Memory}}]",
        "volumes: volumes has a name twice: choose another for one",
    ),
    _template(
        "volumeMounts: [{name: a, mountPath: /a}]",
        "volumeMounts: volumeMounts names a volume that is not in volumes of this template",
    ),
    _template(
        "volumes: [{name: a, emptyDir: {}}], volumeMounts: [{name: a, mountPath: /a}, {name: a, mountPath: /a}]",
        "volumeMounts: volumeMounts mounts two volumes at one mountPath: choose another for one",
    ),
    *(
        _template(
            f"volumes: [{{name: a, emptyDir: {{}}}}], volumeMounts: [{{name: a, mountPath: {path}}}]",
            f"volumeMounts[0].mountPath: '{path}': the operator's files are there (/etc/languagepipes, "
            "/var/lib/languagepipes, /tmp), or the image's (/opt/languagepipes): choose another folder",
        )
        for path in ("/tmp", "/etc", "/etc/languagepipes/tls", "/opt/languagepipes")
    ),
    _template(
        "imagePullSecrets: [{name: a}, {name: b}, {name: a}]",
        "imagePullSecrets: imagePullSecrets names a Secret twice: remove one",
    ),
    _template("labels: {a//b: c}", f"labels: {_KEY.format('labels')}"),
    _template("labels: {A.b/c: d}", f"labels: {_KEY.format('labels')}"),
    _template(f"labels: {{{'a' * 64}: b}}", f"labels: {_KEY.format('labels')}"),
    _template("labels: {languagepipes.io/pipe: other}", f"labels: {_FREE_LABELS}"),
    _template("labels: {app.kubernetes.io/managed-by: Helm}", f"labels: {_FREE_LABELS}"),
    _template("labels: {pod-template-hash: a}", f"labels: {_FREE_LABELS}"),
    _template(
        "annotations: {languagepipes.io/upgrade: a}",
        "annotations: annotations takes no key of the operator or of Kubernetes (languagepipes.io/…): choose another "
        "key",
    ),
    _template("annotations: {a b: c}", f"annotations: {_KEY.format('annotations')}"),
    _template("annotations: {a: true}", "annotations[a]: true is not a string; write it in quotes"),
    _template("env: [{name: LANGUAGEPIPES_ROLE, value: store}]", f"env[0].name: 'LANGUAGEPIPES_ROLE': {_OUR_VARIABLE}"),
    _template("env: [{name: HOME, value: /root}]", f"env[0].name: 'HOME': {_OUR_VARIABLE}"),
    _template("env: [{name: HF_ENDPOINT, value: 'http://a'}]", f"env[0].name: 'HF_ENDPOINT': {_OUR_VARIABLE}"),
    _template("env: [{name: A=B}]", "env[0].name: 'A=B' does not match ^[-._a-zA-Z][-._a-zA-Z0-9]*$"),
    _template("env: [{name: A, value: 1}]", "env[0].value: 1 is not a string; write it in quotes"),
    _template("env: [{name: A}, {name: B}, {name: A, value: b}]", "env: env names a variable twice: remove one"),
    _template(
        "env: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]",
        "env[0]: a variable has value or valueFrom, not both",
    ),
    _template("env: [{name: A, valueFrom: {}}]", f"env[0].valueFrom: {_ONE_SOURCE}"),
    _template(
        "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}, configMapKeyRef: {name: c, key: k}}}]",
        f"env[0].valueFrom: {_ONE_SOURCE}",
    ),
    _template(
        "env: [{name: A, valueFrom: {fieldRef: {fieldPath: x}}}]",
        "env[0].valueFrom.fieldRef.fieldPath: 'x' is none of metadata.name, metadata.namespace, "
        "metadata.uid, spec.nodeName, spec.serviceAccountName, status.hostIP, status.podIP, status.podIPs",
    ),
    _template(
        "envFrom: [{prefix: A_}]", "envFrom[0]: an entry of envFrom has exactly one of secretRef and configMapRef"
    ),
    _template("schedulerName: My_Scheduler", f"schedulerName: 'My_Scheduler' does not match {_SECRET}"),
    _template("serviceAccountName: ''", "serviceAccountName: is empty; give it a value or remove it"),
    _template("priorityClassName: High", f"priorityClassName: 'High' does not match {_SECRET}"),
    _template(
        "nodeSelector: {'a b': c}",
        "nodeSelector: a key of nodeSelector is [PREFIX/]NAME of at most 317 letters, digits, -, _ and .",
    ),
    _template("nodeSelector: {a.b/c: true}", "nodeSelector[a.b/c]: true is not a string; write it in quotes"),
    _template(
        "nodeSelector: {a: 'b c'}",
        "nodeSelector[a]: 'b c' does not match ^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
    ),
    _template(
        "resources: {limits: {cpu: two}}",
        "resources.limits[cpu]: 'two' is no quantity; write it like 2, 500m or 12Gi",
    ),
    _template(
        "resources: {requests: {memory: -1}}",
        "resources.requests[memory]: -1 is no quantity; write it like 2, 500m or 12Gi",
    ),
    _template("tolerations: [{}]", "tolerations[0]: a toleration without key has operator Exists"),
    _template(
        "tolerations: [{key: a, operator: Exists, value: b}]",
        "tolerations[0].value: 'b': operator Exists takes no value",
    ),
    _template(
        "tolerations: [{key: a, tolerationSeconds: 3}]",
        "tolerations[0].tolerationSeconds: 3: tolerationSeconds goes with effect NoExecute",
    ),
    _template(
        "topologySpreadConstraints: [{maxSkew: 0, topologyKey: z, whenUnsatisfiable: Never}]",
        "topologySpreadConstraints[0].maxSkew: 0 is less than 1",
        "topologySpreadConstraints[0].whenUnsatisfiable: 'Never' is none of DoNotSchedule, ScheduleAnyway",
    ),
    _template(
        "topologySpreadConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway, minDomains: 2}]",
        "topologySpreadConstraints[0].minDomains: 2: minDomains goes with whenUnsatisfiable DoNotSchedule",
    ),
    _node_affinity("key: a, operator: In", "values: In and NotIn need values, Exists and DoesNotExist take none"),
    _node_affinity(
        "key: a, operator: Exists, values: [b]",
        "values: In and NotIn need values, Exists and DoesNotExist take none",
    ),
    _node_affinity("key: a, operator: Gt, values: [x]", "values: Gt and Lt take one whole number"),
    # several at once: all are named
    Wrong(
        "three mistakes",
        "spec: {replicas: 99, model: {dtype: bf16, maxContextLength: 1}}",
        (
            "spec.model.dtype: 'bf16' is none of float32, bfloat16, float16; did you mean bfloat16?",
            "spec.model.maxContextLength: 1 is less than 16",
            "spec.replicas: 99 is more than 16",
        ),
    ),
)
