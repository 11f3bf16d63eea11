"""The API server (by the CRD) and the models give the same verdict, and the same words for cross-field rules."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.resource_errors import ResourceError
from languagepipes_api.spec import LanguagePipe, load_pipe, parse_pipe
from languagepipes_api.status import LanguagePipeStatus
from support.crd_judge import ApiServer
from support.wrong_resources import GOOD, WRONG, Wrong, merged

GOOD_CHANGES = [
    "{}",
    "spec: {model: {source: 'hf://Qwen/Qwen3-8B/sub/q4.gguf'}}",
    "spec: {model: {revision: refs/pr/1, tokenSecretRef: {name: hf.io, key: token}}}",
    "spec: {model: {source: 'pvc://claim'}}",
    "spec: {model: {source: 'pvc://a.claim/models/_x/y/'}}",
    "spec: {model: {source: 'pvc://claim/.cache/huggingface/hub/models--a--b/snapshots/1'}}",
    "spec: {model: {source: 'https://mirror.example:8443/a/b%20c/'}}",
    "spec: {model: {source: 'https://mirror.example'}}",
    "spec: {model: {source: 'https://mirror.example:65535/a'}}",
    "spec: {model: {dtype: null, servedName: Qwen/Qwen3-8B}}",
    "spec: {replicas: 0}",
    "spec: {stages: {count: 64, device: GPU}}",
    "spec: {stages: {count: null, list: [{name: a}]}}",
    "spec: {stages: {count: $remove, list: [{name: a, memory: 12Gi, device: GPU}, {name: b}, {name: c, layers: 3}]}}",
    "spec: {stages: {count: $remove, list: [{name: a, memory: 1e9}, {name: b, memory: 500000000}]}}",
    "spec: {endModel: null, server: null}",
    "spec: {endModel: {localLayers: 2, tailLayers: 1, device: GPU}}",
    "spec: {server: {apiKeysSecretRef: {name: keys}, maxConcurrentRequests: 1, maxQueuedRequests: 0}}",
    "spec: {server: {generationConfig: none, cors: {allowedOrigins: ['*']}}}",
    "spec: {server: {generationConfig: auto, cors: {allowedOrigins: ['https://a.example', 'http://localhost:3000']}}}",
    "spec: {server: {cors: {allowedOrigins: ['http://a.example:443', 'https://a.example:80', 'https://a.example:8443']}}}",
    "spec: {server: {generationConfig: null, cors: null}}",
    "spec: {server: {schedulingPolicy: priority}}",
    "spec: {server: {storedResponses: {count: 0}}}",
    "spec: {server: {prefixCache: false}}",
    "spec: {server: {speculativeDecoding: ngram}}",
    "spec: {server: {storedResponses: {count: 5, memory: 1Gi}}}",
    "spec: {server: {storedResponses: null}}",
    "spec: {recovery: {maxWaitSeconds: 0, maxReplays: 0}}",
    "spec: {recovery: {maxWaitSeconds: 3600, maxReplays: 100}}",
    "spec: {recovery: {maxReplays: null}}",
    "spec: {recovery: null}",
    f"metadata: {{name: {'a' * 40}, labels: {{a: b}}}}",
    "spec: {cache: {size: 40Gi}, networkPolicy: {enabled: false}, paused: true}",
    "spec: {cache: {size: 1000000000, storageClassName: fast.disks}, networkPolicy: {}, paused: false}",
    "spec: {networkPolicy: null, cache: null, paused: null}",
    "spec: {store: {}}",
    "spec: {store: {ephemeralStorage: 40Gi, template: {resources: {limits: {cpu: 1}}, labels: {team: ml}}}}",
    "spec: {cache: {size: 40Gi}, store: {template: {env: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]}}}",
    "spec: {endModel: {template: {}}, stages: {template: {}}}",
    "spec: {endModel: {template: {resources: {requests: {cpu: 500m, memory: 2Gi}, limits: {cpu: 2, a.b/gpu: 1}}}}}",
    "spec: {stages: {template: {nodeSelector: {kubernetes.io/arch: amd64, disk: ''}, runtimeClassName: nvidia}}}",
    "spec: {stages: {template: {tolerations: [{operator: Exists}, {key: a/b, value: c, effect: NoSchedule}]}}}",
    "spec: {stages: {template: {tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 0}]}}}",
    "spec: {endModel: {template: {priorityClassName: high, imagePullSecrets: [{name: pull}, {name: pull.b}]}}}",
    "spec: {stages: {count: $remove, list: [{name: a, layers: 1, template: {nodeSelector: {a: b}}}, {name: b}]}}",
    "spec: {stages: {template: {labels: {team: ml, a.b-c/d_e: ''}, annotations: {sidecar.istio.io/inject: 'false'}}}}",
    "spec: {endModel: {template: {schedulerName: volcano, serviceAccountName: ring.reader}}}",
    """spec: {endModel: {template: {
      env: [{name: A, value: ''}, {name: a.b-C},
            {name: B, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}},
            {name: C, valueFrom: {configMapKeyRef: {name: c, key: k}}},
            {name: D, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}],
      envFrom: [{secretRef: {name: s}}, {prefix: A_, configMapRef: {name: c, optional: false}}]}}}""",
    """spec: {endModel: {template: {
      volumes: [{name: ca, configMap: {name: corporate, items: [{key: ca.crt, path: certs/ours.crt}], optional: true}},
                {name: s, secret: {secretName: s.b}}, {name: fast, emptyDir: {medium: Memory, sizeLimit: 512Mi}},
                {name: data, persistentVolumeClaim: {claimName: c, readOnly: true}},
                {name: vault, csi: {driver: secrets-store.csi.k8s.io, readOnly: true,
                                    volumeAttributes: {secretProviderClass: keys}, nodePublishSecretRef: {name: n}}}],
      volumeMounts: [{name: ca, mountPath: /etc/ssl/ours, readOnly: true},
                     {name: s, mountPath: /opt/.keys, subPath: a/.b}, {name: s, mountPath: /tmpx}]}}}""",
    "spec: {store: {template: {volumes: [{name: a, emptyDir: {}}], volumeMounts: [{name: a, mountPath: /a}]}}}",
    """spec: {endModel: {template: {affinity: {nodeAffinity: {
      requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [
        {matchExpressions: [{key: a, operator: NotIn, values: [b, c]}, {key: cores, operator: Gt, values: ['8']}]},
        {matchFields: [{key: metadata.name, operator: In, values: [n1.example]}]}]},
      preferredDuringSchedulingIgnoredDuringExecution: [
        {weight: 100, preference: {matchExpressions: [{key: a, operator: DoesNotExist}]}}]}}}}}""",
    """spec: {stages: {template: {affinity: {podAntiAffinity: {
      requiredDuringSchedulingIgnoredDuringExecution: [
        {topologyKey: kubernetes.io/hostname, namespaces: [other], labelSelector: {matchLabels: {app: db}}}],
      preferredDuringSchedulingIgnoredDuringExecution: [
        {weight: 1, podAffinityTerm: {topologyKey: zone, labelSelector: {matchExpressions: [
          {key: app, operator: Exists}]}}}]}}}}}""",
    """spec: {stages: {template: {topologySpreadConstraints: [
      {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, minDomains: 2, nodeTaintsPolicy: Honor},
      {maxSkew: 2, topologyKey: rack, whenUnsatisfiable: ScheduleAnyway, labelSelector: {}}]}}}""",
]


def verdict(resource: Any) -> str:
    try:
        parse_pipe(resource, local=False)
    except ResourceError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("change", GOOD_CHANGES)
def test_both_accept_what_is_right(change: str, api_server: ApiServer) -> None:
    resource = merged(yaml.safe_load(GOOD), yaml.safe_load(change))

    assert (verdict(resource), api_server.problems(resource)) == ("", [])


@pytest.mark.parametrize("wrong", [wrong for wrong in WRONG if not wrong.local], ids=lambda wrong: wrong.name)
def test_both_refuse_what_is_wrong_and_rules_have_one_message(wrong: Wrong, api_server: ApiServer) -> None:
    problems = api_server.problems(wrong.resource)

    assert problems
    rules = {rule.message for model in _models(LanguagePipe) for rule in getattr(model, "rules", ())}
    broken = [problem for problem in problems if problem in rules]
    if broken:
        assert all(message.endswith(rule) for message, rule in zip(wrong.messages, broken, strict=True))


@pytest.mark.parametrize("change", GOOD_CHANGES)
def test_both_fill_in_the_same_defaults(change: str, api_server: ApiServer) -> None:
    resource = merged(yaml.safe_load(GOOD), yaml.safe_load(change))

    stored = api_server.admit(resource)["spec"]

    read = parse_pipe(resource, local=False).spec.model_dump(mode="json", exclude_none=True)
    # An empty list or map in a template says what an absent one says; the API server adds none.
    assert without_empties(read) == without_empties(stored)


def without_empties(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: without_empties(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in ({}, [])}
    return [without_empties(item) for item in value] if isinstance(value, list) else value


_words = st.sampled_from(["hf://a/b", "pvc://c/d", "https://h/p", "file:///x", "a", "main", "GPU", "CPU", "1Gi", ""])
_values = st.one_of(st.none(), st.booleans(), st.integers(-2, 70), _words)
_entries = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", "c", "store"])},
    optional={"layers": _values, "memory": _values, "device": _values},
)


@settings(max_examples=150, deadline=None)
@given(
    model=st.fixed_dictionaries(
        {"source": _words}, optional={"revision": _values, "dtype": _values, "maxContextLength": _values}
    ),
    stages=st.fixed_dictionaries(
        {}, optional={"count": _values, "device": _values, "list": st.lists(_entries, max_size=4)}
    ),
    rest=st.fixed_dictionaries({}, optional={"replicas": _values, "endModel": st.just({"tailLayers": 2})}),
)
def test_both_agree_on_any_mixture(api_server: ApiServer, model: Any, stages: Any, rest: Any) -> None:
    resource = {**yaml.safe_load(GOOD), "spec": {"model": model, "stages": stages, **rest}}

    assert bool(verdict(resource)) == bool(api_server.problems(resource))


_keys = st.sampled_from(
    ["a", "a.b/c", "", "-a", "a b", "x" * 318, "nvidia.com/gpu", "cpu", "a//b", "languagepipes.io/a"]
)
_maps = st.dictionaries(_keys, st.sampled_from(["b", "", "500m", "1Gi", 1, 0, -1, "b c", True]), max_size=3)
_operators = st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Equal", "like"])
_requirements = st.fixed_dictionaries(
    {"key": _keys, "operator": _operators}, optional={"values": st.lists(st.sampled_from(["b", "3", "", "-3"]))}
)
_tolerations = st.fixed_dictionaries(
    {},
    optional={
        "key": _keys,
        "operator": _operators,
        "value": st.sampled_from(["", "b", "b c"]),
        "effect": st.sampled_from(["NoSchedule", "NoExecute", "Never"]),
        "tolerationSeconds": st.sampled_from([0, 30, -1, "30"]),
    },
)
_templates = st.fixed_dictionaries(
    {},
    optional={
        "nodeSelector": _maps,
        "labels": _maps,
        "annotations": _maps,
        "env": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["A", "B", "LANGUAGEPIPES_A", "HOME", "1"])},
                optional={
                    "value": st.sampled_from(["", "b", 1]),
                    "valueFrom": st.sampled_from([{}, {"fieldRef": {"fieldPath": "metadata.name"}}]),
                },
            ),
            max_size=3,
        ),
        "resources": st.fixed_dictionaries({}, optional={"requests": _maps, "limits": _maps}),
        "tolerations": st.lists(_tolerations, max_size=3),
        "affinity": st.builds(
            lambda one: {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [{"matchExpressions": [one]}]
                    }
                }
            },
            _requirements,
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(template=_templates, cache=st.fixed_dictionaries({}, optional={"size": _values, "storageClassName": _words}))
def test_both_agree_on_any_template_and_cache(api_server: ApiServer, template: Any, cache: Any) -> None:
    for change in ({"endModel": {"template": template}}, {"stages": {"template": template}}, {"cache": cache}):
        resource = merged(yaml.safe_load(GOOD), {"spec": change})

        assert bool(verdict(resource)) == bool(api_server.problems(resource)), change


def test_a_status_as_the_operator_writes_it_is_admitted_and_read_back(api_server: ApiServer) -> None:
    status = {
        "observedGeneration": 3,
        "phase": "Ready",
        "url": "http://qwen3.default.svc/v1",
        "stages": [{"name": "gpu", "layers": "1-20", "nodes": ["n2"], "readyReplicas": 1, "weightBytes": 9}],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "lastTransitionTime": "2026-11-23T10:00:00Z",
                "reason": "TokenRound",
                "message": "",
            }
        ],
    }
    resource = {**yaml.safe_load(GOOD), "status": status}

    assert api_server.problems(resource) == []
    read = LanguagePipeStatus.model_validate(status)
    condition = read.condition("Ready")
    assert condition is not None
    assert condition.reason == "TokenRound"


def test_what_kubectl_prints_can_be_planned_again() -> None:
    exported = GOOD.replace(
        "{name: qwen3}",
        "{name: qwen3, namespace: ml, uid: 1-2, generation: 2, resourceVersion: '7', managedFields: [{}],"
        " creationTimestamp: 2026-11-23T10:00:00Z, annotations: {a: b}}",
    )

    pipe = load_pipe(exported, local=False)

    assert (pipe.name, pipe.namespace, pipe.served_name) == ("qwen3", "ml", "qwen3")


def _models(model: Any) -> list[Any]:
    from languagepipes_api.resource_errors import _models_in

    found = [model]
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            found += _models(inner)
    return found
