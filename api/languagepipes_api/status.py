"""The status of a LanguagePipe, as the operator writes it and people read it (`kubectl get lp`).

Conditions decide; everything else is for people. The CRD's schema for it is generated from these models
(hack/generate_crd.py).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

ConditionType = Literal[
    "Ready",
    "Planned",
    "WeightsAvailable",
    "StagesReady",
    "EndpointReady",
    "Progressing",
    "Degraded",
    "Stalled",
    "ScalingActive",
]
Phase = Literal[
    "Pending",
    "Planning",
    "Fetching",
    "Starting",
    "Ready",
    "Idle",
    "Recovering",
    "Degraded",
    "Stopped",
    "Paused",
    "Failed",
]

RevisionOutcome = Literal["Progressing", "Complete", "ProgressDeadlineExceeded", "Superseded", "Undone"]

HISTORY_MAX = 10

_Text = Annotated[str, Field(max_length=512)]
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StatusModel(BaseModel):
    """What all parts of the status have in common: camelCase outside, closed, immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )


class Condition(StatusModel):
    """A metav1.Condition (k8s.io/apimachinery/pkg/apis/meta/v1): what holds, since when, and why."""

    type: Annotated[str, Field(max_length=316, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")] = Field(
        description="What the condition is about; see the types named in the reference."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="The generation of the spec that the condition speaks of.",
        json_schema_extra={"format": "int64"},
    )
    last_transition_time: datetime = Field(description="When `status` last changed.")
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ] = Field(description="Why, in one CamelCase word for machines.")
    message: Annotated[str, Field(max_length=32768)] = Field(
        description="Why, in a sentence for people, with the remedy where there is one."
    )


class StageStatus(StatusModel):
    """One stage of the pipe, over all its replicas."""

    name: Annotated[str, Field(max_length=32)] = Field(description="The stage's name.")
    layers: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="The layers it runs, first and last: 1-20."
    )
    nodes: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = Field(
        default=(), description="The node that runs it, for each replica."
    )
    ready_replicas: _Count = Field(default=0, description="How many of its pods are ready.")
    restarts: _Count = Field(default=0, description="How often its containers were restarted.")
    weight_bytes: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="Bytes of weights that one of its pods holds.",
        json_schema_extra={"format": "int64"},
    )


class RevisionEntry(StatusModel):
    """One revision that was asked for."""

    revision: Annotated[str, Field(max_length=64)] = Field(description="The revision, as in `updatedRevision`.")
    asked_at: datetime = Field(description="When it was asked for, and there was a plan for it.")
    generation: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="The generation of the spec that asked for it first.",
        json_schema_extra={"format": "int64"},
    )
    changes: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=16)] = Field(
        default=(), description="What changed since the entry before, by field of the spec: stages.count: 3 -> 4."
    )
    node_image: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="The image of its members."
    )
    outcome: RevisionOutcome = Field(
        description="Complete once every replica ran it and was ready; Superseded where another was asked for before "
        "that, and Undone where that was an earlier one. Later versions may have others."
    )
    completed_at: datetime | None = Field(default=None, description="When it was complete.")
    spec: Annotated[str, Field(max_length=16384)] | None = Field(
        default=None,
        description="Of the newest entry: the fields that shape pods, as JSON by path, which the next entry is "
        "compared with.",
    )


class LanguagePipeStatus(StatusModel):
    """What was observed. Written by the operator alone."""

    observed_generation: Annotated[int, Field(ge=-1)] | None = Field(
        default=None,
        description="The generation of the spec that this status speaks of; -1 until the operator has seen the pipe.",
        json_schema_extra={"format": "int64"},
    )
    phase: Phase | None = Field(
        default=None, description="One word for people; conditions decide. Later versions may have others."
    )
    url: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="The OpenAI API's base URL inside the cluster."
    )
    resolved_revision: Annotated[str, Field(max_length=250)] | None = Field(
        default=None,
        description="The commit, or digest, that the source was resolved to and is pinned to, of the plan `planHash`: "
        "until there is a plan for the spec, of the plan that runs.",
    )
    plan_hash: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Identifies the plan that members must agree on."
    )
    progress: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Weights fetched of all, while they are fetched: 12.1/16.4 GiB."
    )
    stages_ready: Annotated[str, Field(max_length=16)] | None = Field(
        default=None, description="Stages ready of all: 2/3."
    )
    replicas: _Count | None = Field(default=None, description="Replicas that exist.")
    desired_replicas: _Count | None = Field(
        default=None,
        description="With spec.autoscaling: how many replicas the operator wants. 0: one, whose stages are stopped "
        "until a request waits.",
    )
    ready_replicas: _Count | None = Field(
        default=None, description="Replicas that answer requests now; not those that recover."
    )
    updated_replicas: _Count | None = Field(default=None, description="Replicas that exist and run `updatedRevision`.")
    current_revision: Annotated[str, Field(max_length=64)] | None = Field(
        default=None,
        description="The revision that all replicas ran when last all of them were ready: a digest of everything that "
        "shapes their pods.",
    )
    updated_revision: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="The revision that the spec asks for; another one than the current during a rollout."
    )
    selector: _Text | None = Field(default=None, description="Selects the End Model pods, for the scale subresource.")
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=64)] = Field(
        default=(), description="The stages, in the order of their layers."
    )
    history: Annotated[tuple[RevisionEntry, ...], Field(max_length=HISTORY_MAX)] = Field(
        default=(), description="The last revisions that were asked for, the newest first."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Ready, Planned, WeightsAvailable, StagesReady, EndpointReady, Progressing and Degraded; with "
        "spec.autoscaling ScalingActive.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if it was written."""
        return next((condition for condition in self.conditions if condition.type == kind), None)
