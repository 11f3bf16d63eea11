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
    "Ready", "Planned", "WeightsAvailable", "StagesReady", "EndpointReady", "Progressing", "Degraded"
]
Phase = Literal["Pending", "Planning", "Fetching", "Starting", "Ready", "Recovering", "Degraded", "Stopped", "Failed"]

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


class LanguagePipeStatus(StatusModel):
    """What was observed. Written by the operator alone."""

    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="The generation of the spec that this status speaks of.",
        json_schema_extra={"format": "int64"},
    )
    phase: Phase | None = Field(default=None, description="One word for people; conditions decide.")
    url: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="The OpenAI API's base URL inside the cluster."
    )
    resolved_revision: Annotated[str, Field(max_length=250)] | None = Field(
        default=None, description="The commit, or digest, that the source was resolved to and is pinned to."
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
    ready_replicas: _Count | None = Field(
        default=None, description="Replicas that answer requests now; not those that recover."
    )
    selector: _Text | None = Field(default=None, description="Selects the End Model pods, for the scale subresource.")
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=64)] = Field(
        default=(), description="The stages, in the order of their layers."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Ready, Planned, WeightsAvailable, StagesReady, EndpointReady, Progressing and Degraded.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, if it was written."""
        return next((condition for condition in self.conditions if condition.type == kind), None)
