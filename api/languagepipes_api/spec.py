"""The LanguagePipe resource: what a user may ask for. One definition for the CRD, `languagepipes` and the
operator.

The CRD in crds/ is generated from these models (hack/generate_crd.py): field descriptions, defaults, bounds and
enums come from the fields, CEL rules from `rules`. A field whose work comes later is absent, so that nothing
is accepted and ignored. This module knows nothing of models, nodes or plans: whether a spec can be served is
the planner's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from languagepipes_api import source as sources
from languagepipes_api.member_settings import GenerationConfig, SchedulingPolicy, SpeculativeDecoding
from languagepipes_api.names import API_GROUP, API_VERSION, KIND
from languagepipes_api.plan import Device, Dtype, Quantization, ToolParser
from languagepipes_api.quantity import parse_quantity
from languagepipes_api.resource_errors import Problem, ResourceError, problems_of
from languagepipes_api.resource_model import KeyName, ObjectName, Quantity, ResourceModel, Rule
from languagepipes_api.status import LanguagePipeStatus
from languagepipes_api.template import PodTemplate, StoreTemplate
from languagepipes_api.yaml_reader import read_yaml

NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MAX_LENGTH = 40
STAGES_MAX = 64
LAYERS_MAX = 1000
DEFAULT_REVISION = "main"

_RESERVED_STAGE_NAMES = ("end-model", "store")

LayerCount = Annotated[int, Field(ge=1, le=LAYERS_MAX)]


class SecretKeyRef(ResourceModel):
    """One key of a Secret in the pipe's namespace. `languagepipes up` reads SECRETS_DIR/<name>/<key> in its
    place.
    """

    name: ObjectName = Field(description="The Secret's name.")
    key: KeyName = Field(description="The key in it.")


class SecretRef(ResourceModel):
    """A whole Secret in the pipe's namespace. `languagepipes up` reads the files of SECRETS_DIR/<name> in its
    place.
    """

    name: ObjectName = Field(description="The Secret's name.")


def _source_is(scheme: str, pattern: str) -> Callable[[ModelSpec], bool]:
    def holds(model: ModelSpec) -> bool:
        if not model.source.startswith(scheme):
            return True
        try:
            sources.parse_source(model.source)
        except ValueError:
            return False
        return True

    return holds


class ModelSpec(ResourceModel):
    """Which model, in which revision and number format."""

    source: Annotated[str, Field(min_length=1, max_length=512)] = Field(
        description="Where the weights come from: hf://OWNER/NAME (the Hugging Face Hub; /FILE.gguf for one "
        "GGUF file), "
        "pvc://CLAIM/PATH (a volume claim in the pipe's namespace) or https://HOST/PATH (a mirror). "
        "`languagepipes up` also takes file://PATH, and no pvc://."
    )
    revision: Annotated[str, Field(min_length=1, max_length=250, pattern="^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = (
        Field(
            default=None,
            description="A branch, tag or commit of an hf:// source; main if absent. It is resolved to a commit, "
            "which is "
            "pinned until source or revision changes.",
        )
    )
    served_name: (
        Annotated[str, Field(min_length=1, max_length=128, pattern="^[A-Za-z0-9][A-Za-z0-9._:/-]*$")] | None
    ) = Field(default=None, description='What clients put in "model"; the resource\'s name if absent.')
    token_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="The Hub token for gated models. It is mounted into the weights store and sent to the "
        "Hub's host alone.",
    )
    dtype: Dtype = Field(
        default="bfloat16",
        description="The number format of weights at rest, of the KV cache and of hidden states on the wire.",
    )
    quantization: Quantization = Field(
        default="none",
        description="How the matrices of layers, embedding and head are kept, in place of dtype: int8 and int4 are "
        "made by the weights store; asStored keeps a GGUF file's own types.",
    )
    max_context_length: Annotated[int, Field(ge=16, le=2**20)] = Field(
        default=8192,
        description="The longest prompt and answer together, in tokens. KV cache is reserved for at least "
        "one such sequence.",
    )
    tool_parser: ToolParser = Field(
        default="auto",
        description="The format of the model's tool calls. auto: it is known by the model's chat template.",
    )

    rules = (
        Rule(
            "source must start with hf://, pvc:// or https:// (file:// is for `languagepipes up` alone)",
            lambda model: model.source.startswith(("hf://", "pvc://", "https://")),
            "self.source.startsWith('hf://') || self.source.startsWith('pvc://') || self.source.startsWith('https://')",
            "source",
            "cluster",
        ),
        Rule(
            "source must start with hf://, https:// or file:// (pvc:// names a volume claim, which only a cluster has)",
            lambda model: model.source.startswith(("hf://", "https://", "file://")),
            field="source",
            where="local",
        ),
        Rule(
            sources.HUB_FORM,
            _source_is("hf://", sources.HUB_PATTERN),
            f"!self.source.startsWith('hf://') || self.source.matches('{sources.HUB_PATTERN}')",
            "source",
        ),
        Rule(
            sources.VOLUME_FORM,
            _source_is("pvc://", sources.VOLUME_PATTERN),
            f"!self.source.startsWith('pvc://') || self.source.matches('{sources.VOLUME_PATTERN}')",
            "source",
        ),
        Rule(
            sources.HTTPS_FORM,
            _source_is("https://", sources.HTTPS_PATTERN),
            f"!self.source.startsWith('https://') || self.source.matches('{sources.HTTPS_PATTERN}')",
            "source",
        ),
        Rule(sources.FILE_FORM, _source_is("file://", sources.FILE_PATTERN), field="source", where="local"),
        Rule(
            "revision works with hf:// sources alone; remove it",
            lambda model: model.revision is None or model.source.startswith("hf://"),
            "!has(self.revision) || self.source.startsWith('hf://')",
            "revision",
        ),
        Rule(
            "tokenSecretRef works with hf:// sources alone; remove it",
            lambda model: model.token_secret_ref is None or model.source.startswith("hf://"),
            "!has(self.tokenSecretRef) || self.source.startsWith('hf://')",
            "tokenSecretRef",
        ),
    )

    @property
    def resolved_from(self) -> str | None:
        """The revision to resolve: as asked, or "main" for hf://; None for sources that have none."""
        if not self.source.startswith("hf://"):
            return None
        return self.revision or DEFAULT_REVISION


class EndModelSpec(ResourceModel):
    """The member that handles text: tokenizer, embedding, norm, head, and layers at both ends."""

    local_layers: LayerCount = Field(
        default=1,
        description="How many of the first layers it runs: the privacy boundary at the front. At least 1, "
        "since an "
        "embedding row is its token.",
    )
    tail_layers: Annotated[int, Field(ge=0, le=LAYERS_MAX)] = Field(
        default=0,
        description="How many of the last layers it runs: the privacy boundary at the back. With 0, the last "
        "stage sees "
        "the state that the answer is read from.",
    )
    device: Device = Field(default="CPU", description="What it computes on.")
    template: PodTemplate | None = Field(
        default=None,
        description="What its pod gets besides. The weights store's pod takes nodeSelector, tolerations, node "
        "affinity, priorityClassName and imagePullSecrets from it too, where store.template has none. `languagepipes "
        "up` has no pods and ignores it.",
    )

    @property
    def store_template(self) -> PodTemplate | None:
        """What the weights store's pod takes over: it holds the Hub token and all weights, so it belongs where the
        End Model does, and its image comes from the same registry. All else is for `spec.store.template` to say.
        """
        if self.template is None:
            return None
        affinity = self.template.affinity
        return PodTemplate(
            node_selector=self.template.node_selector,
            tolerations=self.template.tolerations,
            affinity=affinity and affinity.model_copy(update={"pod_affinity": None, "pod_anti_affinity": None}),
            priority_class_name=self.template.priority_class_name,
            image_pull_secrets=self.template.image_pull_secrets,
        )


class StageSpec(ResourceModel):
    """One stage of an ordered list. Without `layers` and `memory` it takes what the others leave."""

    name: Annotated[str, Field(min_length=1, max_length=32, pattern=NAME_PATTERN)] = Field(
        description="The stage's name, unique in the pipe."
    )
    layers: LayerCount | None = Field(default=None, description="Exactly this many layers.")
    memory: Quantity | None = Field(
        default=None,
        description="A budget of device memory: as many layers as fit with their KV cache for one sequence "
        "of "
        "maxContextLength and the stated overhead.",
    )
    device: Device = Field(default="CPU", description="What it computes on.")
    template: PodTemplate | None = Field(
        default=None,
        description="What its pod gets besides. `languagepipes up` has no pods and ignores it.",
    )

    rules = (
        Rule(
            "a stage has layers or memory, not both",
            lambda stage: stage.layers is None or stage.memory is None,
            "!(has(self.layers) && has(self.memory))",
        ),
        Rule(
            "end-model and store are not free as stage names",
            lambda stage: stage.name not in _RESERVED_STAGE_NAMES,
            "!(self.name in ['end-model', 'store'])",
            "name",
        ),
    )

    @property
    def memory_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.memory is None else parse_quantity(self.memory)

    @property
    def open(self) -> bool:
        """Whether it takes what the others leave."""
        return self.layers is None and self.memory is None


class StagesSpec(ResourceModel):
    """How the remaining layers are split: a count of equal stages, or an ordered list."""

    count: Annotated[int, Field(ge=1, le=STAGES_MAX)] | None = Field(
        default=None, description="This many stages, split so that the heaviest is as light as possible."
    )
    device: Device | None = Field(default=None, description="What every stage of `count` computes on; CPU if absent.")
    template: PodTemplate | None = Field(
        default=None,
        description="What the pod of every stage of `count` gets besides. `languagepipes up` has no pods and ignores "
        "it.",
    )
    items: Annotated[tuple[StageSpec, ...], Field(min_length=1, max_length=STAGES_MAX, strict=False)] | None = Field(
        default=None,
        alias="list",
        description="The stages in the order of their layers. At most one entry without layers and memory "
        "takes the rest.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )

    rules = (
        Rule(
            "stages has exactly one of count and list",
            lambda stages: (stages.count is None) != (stages.items is None),
            "has(self.count) != has(self.list)",
        ),
        Rule(
            "device goes with count; in a list each entry has its own",
            lambda stages: stages.device is None or stages.items is None,
            "!(has(self.device) && has(self.list))",
            "device",
        ),
        Rule(
            "template goes with count; in a list each entry has its own",
            lambda stages: stages.template is None or stages.items is None,
            "!(has(self.template) && has(self.list))",
            "template",
        ),
        Rule(
            "at most one entry of list has neither layers nor memory",
            lambda stages: sum(stage.open for stage in stages.items or ()) <= 1,
            "!has(self.list) || self.list.filter(s, !has(s.layers) && !has(s.memory)).size() <= 1",
            "list",
        ),
        Rule(
            "stage names are unique",
            lambda stages: len({stage.name for stage in stages.items or ()}) == len(stages.items or ()),
            "!has(self.list) || self.list.all(s, self.list.exists_one(t, t.name == s.name))",
            "list",
        ),
    )

    @property
    def size(self) -> int:
        """How many stages there are."""
        return self.count or len(self.items or ())


Origin = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^(\*|https?://[^/?#,\s]+)$")]


class CorsSpec(ResourceModel):
    """Which web pages may call the API from a browser."""

    allowed_origins: Annotated[tuple[Origin, ...], Field(min_length=1, max_length=32, strict=False)] = Field(
        description="Origins of such pages, as browsers send them (https://chat.example.org); * for all."
    )

    rules = (
        Rule(
            "browsers send origins in small letters: write them so",
            lambda cors: not any(re.search("[A-Z]", origin) for origin in cors.allowed_origins),
            "!self.allowedOrigins.exists(origin, origin.matches('[A-Z]'))",
            "allowedOrigins",
        ),
        Rule(
            "browsers leave the default port out of an origin (443 with https, 80 with http): leave it out too",
            lambda cors: not any(re.match("https:.*:0*443$|http:.*:0*80$", origin) for origin in cors.allowed_origins),
            "!self.allowedOrigins.exists(origin, origin.matches('^(https:.*:0*443|http:.*:0*80)$'))",
            "allowedOrigins",
        ),
    )


class StoredResponsesSpec(ResourceModel):
    """How much the End Model remembers of /v1/responses: in memory, until it restarts. What was used least recently is
    forgotten first."""

    count: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=1000, description="How many responses are kept. 0: none."
    )
    memory: Quantity = Field(default="64Mi", description="How much memory their text may take.")

    @property
    def memory_bytes(self) -> int:
        return parse_quantity(self.memory)


class ServerSpec(ResourceModel):
    """The OpenAI API that the End Model serves."""

    api_keys_secret_ref: SecretRef | None = Field(
        default=None,
        description="Every value of this Secret is an API key, of which each request must carry one. Absent: "
        "no key is asked.",
    )
    max_concurrent_requests: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=64, description="How many requests are admitted at a time."
    )
    max_queued_requests: Annotated[int, Field(ge=0, le=65536)] = Field(
        default=256, description="How many more may wait; the next one is refused with 429."
    )
    generation_config: GenerationConfig = Field(
        default="auto",
        description="Where sampling parameters that a request leaves out come from: auto, the model's "
        "generation_config.json; none, the defaults of OpenAI's API.",
    )
    scheduling_policy: SchedulingPolicy = Field(
        default="fair",
        description="Which waiting requests start first: fair, clients take turns; priority, those with the lowest "
        "priority in the request, whoever sends it, and clients take turns within one priority.",
    )
    cors: CorsSpec | None = Field(
        default=None, description="Which web pages may call the API from a browser. Absent: none of other origins."
    )
    stored_responses: StoredResponsesSpec = Field(
        default_factory=StoredResponsesSpec,
        json_schema_extra={"default": {}},
        description="Responses of /v1/responses that clients may come back to.",
    )
    prefix_cache: bool = Field(
        default=True,
        description="Whether what prompts begin with is computed once and kept as long as KV blocks are left, for "
        "requests with the same API key.",
    )
    speculative_decoding: SpeculativeDecoding = Field(
        default="none",
        description="Whether the next tokens of an answer are drafted from its own text, and several verified in one "
        "trip round the ring; the answer is the same. none: never; auto: where it pays, as measured; ngram: wherever "
        "the last tokens stood before.",
    )


class RecoverySpec(ResourceModel):
    """What happens to requests while a replica has lost a member: they wait, and are computed again where needed."""

    max_wait_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=300,
        description="How long requests, running and new ones, wait while the replica's ring is not whole. After that "
        "they end: with 503 and Retry-After, or, where an answer has begun, with one error event. 0: they do not wait.",
    )
    max_replays: Annotated[int, Field(ge=0, le=100)] = Field(
        default=5,
        description="How often a request that a loss interrupted is computed again without getting a token in "
        "between, before it fails. 0: a request that a loss interrupted fails.",
    )


class RolloutSpec(ResourceModel):
    """How replicas of one revision are replaced by those of the next, and how a replica goes."""

    rules = (
        Rule(
            message="maxSurge and maxUnavailable are both 0, so no replica could be replaced: raise one of them",
            holds=lambda rollout: rollout.max_surge > 0 or rollout.max_unavailable > 0,
            # The API server judges the default {} of `rollout` before it fills in the defaults of the fields.
            cel="!has(self.maxSurge) || self.maxSurge > 0 || (has(self.maxUnavailable) && self.maxUnavailable > 0)",
        ),
    )

    max_surge: Annotated[int, Field(ge=0, le=16)] = Field(
        default=1,
        description="How many replicas may stand beside `replicas` while they are replaced; the cluster needs room for "
        "them. Those that still complete their answers count.",
    )
    max_unavailable: Annotated[int, Field(ge=0, le=16)] = Field(
        default=0,
        description="How many replicas fewer than `replicas` may be ready because some are being replaced. With "
        "`maxSurge: 0` a full cluster replaces them one after another.",
    )
    drain_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=300,
        description="How long a replica that goes may take to complete the answers that it has begun. Another value is "
        "another revision.",
    )
    progress_deadline_seconds: Annotated[int, Field(ge=10, le=86400)] = Field(
        default=900,
        description="After how long a new replica that is not ready is reported: Progressing turns False with the "
        "reason ProgressDeadlineExceeded. The earlier replicas go on serving. Time in which the weights store fetches "
        "the model does not count.",
    )


class AutoscalingSpec(ResourceModel):
    """How many replicas there are, decided by the operator from the requests that End Models report."""

    rules = (
        Rule(
            message="minReplicas is larger than maxReplicas: lower it, or raise maxReplicas",
            holds=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
            cel="!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
            field="minReplicas",
        ),
    )

    min_replicas: Annotated[int, Field(ge=0, le=16)] = Field(
        default=1,
        description="The fewest. 0: after scaleDownDelaySeconds without a request the stages of the last replica are "
        "stopped, and its End Model stays; requests wait there until the stages are back. Whether it is 0 is part of "
        "the revision.",
    )
    max_replicas: Annotated[int, Field(ge=1, le=16)] = Field(description="The most.")
    target_requests_per_replica: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=8,
        description="For each so many requests that run or wait there is to be a replica; each of several answers to "
        "one request counts.",
    )
    scale_down_delay_seconds: Annotated[int, Field(ge=0, le=86400)] = Field(
        default=300,
        description="There are as many replicas as were needed at any time in the last so many seconds.",
    )


class PlacementSpec(ResourceModel):
    """Where members may go, beyond what their templates say."""

    allow_pending: bool = Field(
        default=False,
        description="Whether pods are made although the nodes of today cannot run all of them: for clusters that get "
        "nodes when pods are Pending (a cluster autoscaler). The plan is made from the spec's own sizes then. False: "
        "such a spec is refused, and nothing is made.",
    )


class CacheSpec(ResourceModel):
    """The weights store's volume: a PersistentVolumeClaim that lives as long as the pipe."""

    size: Quantity = Field(
        description="How large the volume is: the model's files, and as much again where a GGUF file is converted."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="The StorageClass; the cluster's default class if absent."
    )


class StoreSpec(ResourceModel):
    """The weights store's pod."""

    template: StoreTemplate | None = Field(
        default=None,
        description="What its pod gets besides. A field that is written here takes the place of the one that the pod "
        "takes from endModel.template. Requests that are absent: cpu 100m, memory 256Mi; limits: memory 2Gi.",
    )
    ephemeral_storage: Quantity | None = Field(
        default=None,
        description="How much of its node's disk the model's files may take where there is no cache: requested from "
        "the scheduler, and the volume's sizeLimit, beyond which the pod is evicted. As large as cache.size would "
        "be. Absent: nothing is requested, and the node's disk is the bound.",
    )

    @property
    def ephemeral_storage_bytes(self) -> int | None:
        return None if self.ephemeral_storage is None else parse_quantity(self.ephemeral_storage)


class NetworkPolicySpec(ResourceModel):
    """Who may connect to the pipe's pods, said in NetworkPolicies besides the certificates."""

    enabled: bool = Field(
        default=True,
        description="Whether the operator makes NetworkPolicies: a stage talks to its predecessor, its successor "
        "and the store only.",
    )


class PipeSpec(ResourceModel):
    """What is asked for."""

    rules = (
        Rule(
            "recovery.maxWaitSeconds is 0, so no request would wait for the stages that autoscaling.minReplicas: 0 "
            "stops: raise one of them",
            lambda spec: not spec.scales_to_zero or spec.recovery.max_wait_seconds > 0,
            "!has(self.autoscaling) || !has(self.autoscaling.minReplicas) || self.autoscaling.minReplicas > 0 || "
            "!has(self.recovery) || !has(self.recovery.maxWaitSeconds) || self.recovery.maxWaitSeconds > 0",
            "autoscaling.minReplicas",
            "cluster",
        ),
        Rule(
            "store.ephemeralStorage is the node's disk, and with cache the model's files are on a volume: remove one",
            lambda spec: spec.cache is None or spec.store is None or spec.store.ephemeral_storage is None,
            "!has(self.cache) || !has(self.store) || !has(self.store.ephemeralStorage)",
            "store.ephemeralStorage",
        ),
    )

    model: ModelSpec = Field(description="Which model, in which revision and number format.")
    replicas: Annotated[int, Field(ge=0, le=16)] = Field(
        default=1,
        description="How many complete rings serve it. With `autoscaling` it is not used. `languagepipes up` runs one.",
    )
    autoscaling: AutoscalingSpec | None = Field(
        default=None,
        description="The operator decides the number of replicas, and keeps it in status.desiredReplicas. Absent: "
        "`replicas` says it. `languagepipes up` has one replica, and ignores it.",
    )
    end_model: EndModelSpec = Field(
        default_factory=EndModelSpec,
        json_schema_extra={"default": {}},
        description="The member that handles text: tokenizer, embedding, norm, head, and layers at both ends.",
    )
    stages: StagesSpec = Field(description="How the layers between are split: a count of equal stages, or a list.")
    server: ServerSpec = Field(
        default_factory=ServerSpec,
        json_schema_extra={"default": {}},
        description="The OpenAI API that the End Model serves.",
    )
    recovery: RecoverySpec = Field(
        default_factory=RecoverySpec,
        json_schema_extra={"default": {}},
        description="What happens to requests while a replica has lost a member.",
    )
    rollout: RolloutSpec = Field(
        default_factory=RolloutSpec,
        json_schema_extra={"default": {}},
        description="How replicas of one revision are replaced by those of the next. `languagepipes up` has one "
        "replica, and ignores it.",
    )
    placement: PlacementSpec = Field(
        default_factory=PlacementSpec,
        json_schema_extra={"default": {}},
        description="Where members may go. `languagepipes up` has no nodes to choose from, and ignores it.",
    )
    cache: CacheSpec | None = Field(
        default=None,
        description="The weights store's volume. Absent: the node's disk, and weights are fetched again when the "
        "store's pod is lost. `languagepipes up` has --cache-dir in its place and ignores it.",
    )
    store: StoreSpec | None = Field(
        default=None,
        description="The weights store's pod. A change starts it anew, and rings go on meanwhile. `languagepipes up` "
        "has no pods and ignores it.",
    )
    network_policy: NetworkPolicySpec = Field(
        default_factory=NetworkPolicySpec,
        json_schema_extra={"default": {}},
        description="Who may connect to the pipe's pods. `languagepipes up` has no pods and ignores it.",
    )
    paused: bool = Field(
        default=False,
        description="While true the operator changes no child but certificates; the status stays true. "
        "`languagepipes up` has no operator and ignores it.",
    )

    @property
    def planned_replicas(self) -> int:
        """For how many replicas a plan has to find room: with `autoscaling` for the fewest, and never for none."""
        return max(1, self.replicas if self.autoscaling is None else self.autoscaling.min_replicas)

    @property
    def scales_to_zero(self) -> bool:
        """Whether stages may be stopped while no request needs them."""
        return self.autoscaling is not None and self.autoscaling.min_replicas == 0

    @property
    def templates(self) -> dict[str, StoreTemplate]:
        """Those that are written, by their fields as YAML spells them."""
        stages = {
            f"stages.list[{place}].template": stage.template for place, stage in enumerate(self.stages.items or ())
        }
        found = {
            "endModel.template": self.end_model.template,
            "stages.template": self.stages.template,
            **stages,
            "store.template": None if self.store is None else self.store.template,
        }
        return {field: template for field, template in found.items() if template is not None}

    @property
    def cluster_only(self) -> tuple[str, ...]:
        """The fields in use, as YAML spells them, that mean something in a cluster alone: `languagepipes up` and
        `plan` take them, since the same YAML runs without a cluster, and say once that they ignore them.
        """
        of_members = {field: template for field, template in self.templates.items() if field != "store.template"}
        used = {
            **of_members,
            "autoscaling": self.autoscaling,
            "rollout": None if self.rollout == RolloutSpec() else self.rollout,
            "placement": None if self.placement == PlacementSpec() else self.placement,
            "cache": self.cache,
            "store": self.store,
            "networkPolicy": None if self.network_policy.enabled else self.network_policy,
            "paused": self.paused or None,
        }
        return tuple(field for field, value in used.items() if value is not None)

    def without_cluster_only(self) -> PipeSpec:
        """The same with those fields at their defaults."""
        stages = self.stages.items and tuple(each.model_copy(update={"template": None}) for each in self.stages.items)
        return self.model_copy(
            update={
                "end_model": self.end_model.model_copy(update={"template": None}),
                "stages": self.stages.model_copy(update={"template": None, "items": stages}),
                "autoscaling": None,
                "rollout": RolloutSpec(),
                "placement": PlacementSpec(),
                "cache": None,
                "store": None,
                "network_policy": NetworkPolicySpec(),
                "paused": False,
            }
        )


class Metadata(ResourceModel):
    """Kubernetes' ObjectMeta (k8s.io/apimachinery/pkg/apis/meta/v1), of which we use name, namespace, uid,
    generation.
    """

    name: str
    namespace: str = "default"
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: Any = None
    deletion_timestamp: Any = None
    deletion_grace_period_seconds: int | None = None
    finalizers: Any = None
    owner_references: Any = None
    managed_fields: Any = None
    self_link: str | None = None
    generate_name: str | None = None


class LanguagePipe(ResourceModel):
    """A language model served from a ring of layer ranges behind one OpenAI URL."""

    api_version: Literal["languagepipes.io/v1alpha1"]
    kind: Literal["LanguagePipe"]
    metadata: Metadata
    spec: PipeSpec = Field(description="What is asked for.")
    status: LanguagePipeStatus | None = Field(
        default=None, description="What was observed. Written by the operator alone."
    )

    rules = (
        Rule(
            "metadata.name must be a DNS label of at most 40 characters: a-z, 0-9 and -, starting with a letter",
            lambda pipe: (
                len(pipe.metadata.name) <= NAME_MAX_LENGTH
                and re.fullmatch(NAME_PATTERN.strip("^$"), pipe.metadata.name) is not None
            ),
            f"self.metadata.name.size() <= {NAME_MAX_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
            "metadata.name",
        ),
    )

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def served_name(self) -> str:
        """What clients put in "model"."""
        return self.spec.model.served_name or self.metadata.name

    def seen_from(self, directory: Path) -> LanguagePipe:
        """The same with a relative file:// source made absolute, seen from `directory` (absolute)."""
        source = sources.absolute_source(self.spec.model.source, directory)
        model = self.spec.model.model_copy(update={"source": source})
        return self.model_copy(update={"spec": self.spec.model_copy(update={"model": model})})


def load_pipe(text: str, *, local: bool) -> LanguagePipe:
    """The one LanguagePipe in a YAML (or JSON) document.

    local: judged as `languagepipes up` and `plan` on this machine do (file:// allowed, pvc:// refused), not
    as the API server does. Raises ResourceError, which names every wrong field with its path, its value and
    the remedy.
    """
    return parse_pipe(read_yaml(text), local=local)


def parse_pipe(data: object, *, local: bool) -> LanguagePipe:
    """As `load_pipe`, from parsed YAML or JSON. Null fields count as absent, as the API server has it."""
    if not isinstance(data, dict):
        raise ResourceError([Problem("", f"a {KIND} is a mapping of apiVersion, kind, metadata and spec")])
    expected = f"{API_GROUP}/{API_VERSION}"
    if data.get("apiVersion") != expected or data.get("kind") != KIND:
        found = f"apiVersion {data.get('apiVersion')!r}, kind {data.get('kind')!r}"
        raise ResourceError([Problem("", f"{found}: expected apiVersion {expected!r}, kind {KIND!r}")])
    try:
        return LanguagePipe.model_validate(_without_nulls(data), by_alias=True, by_name=False, context={"local": local})
    except ValidationError as error:
        raise ResourceError(problems_of(error, LanguagePipe)) from error


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
