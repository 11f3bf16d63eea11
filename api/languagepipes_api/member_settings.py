"""How a node process is told what it is: environment variables, the same in a pod and under `languagepipes up`.

Whoever starts a member builds `MemberSettings` and passes `to_environment()`; the member calls `from_environment()`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from languagepipes_api.names import Identity
from languagepipes_api.plan import Dtype, Quantization, ToolParser

PREFIX = "LANGUAGEPIPES_"

GenerationConfig = Literal["auto", "none"]
SchedulingPolicy = Literal["fair", "priority"]
SpeculativeDecoding = Literal["auto", "ngram", "none"]


class MemberSettings(BaseModel):
    """One member's settings. Addresses are `host:port`; an IPv6 host stands in brackets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["store", "stage", "end-model"]
    namespace: str = "default"
    pipe: str
    # LANGUAGEPIPES_CHAIN in the environment: images of different versions meet in one pipe.
    replica: int = Field(default=0, validation_alias=AliasChoices("chain", "replica"), serialization_alias="chain")
    stage: int = Field(default=0, ge=0, le=64, description="The stage's place in the ring, from 1; 0 for other roles.")
    tls_dir: Path = Field(description="Holds ca.crt, tls.crt and tls.key; read anew for each connection.")
    telemetry_listen: str = Field(
        default="0.0.0.0:9090", description="Where /metrics, /healthz and /readyz are served."
    )
    threads: int | None = Field(default=None, ge=1, description="Compute threads; default: the container's CPU limit.")
    shared_cores: bool = Field(
        default=False, description="True where members share cores: one decode micro-batch in flight."
    )

    termination_log: Path = Field(
        default=Path("/dev/termination-log"),
        description="Takes `code: sentence` when the member ends by an error, if the file is there.",
    )

    # stage and end-model
    plan_file: Path | None = Field(default=None, description="The plan, as JSON.")
    store_address: str | None = None
    ring_listen: str | None = None
    successor: str | None = Field(default=None, description="The next member; the last stage's is the End Model.")
    device: Literal["CPU", "GPU"] = "CPU"

    # end-model
    api_listen: str | None = None
    served_name: str | None = None
    api_keys_dir: Path | None = Field(
        default=None, description="Each file's content is one API key; absent: no keys asked."
    )
    tool_parser: ToolParser = Field(default="auto", description="The format of the model's tool calls.")
    max_concurrent_requests: int = Field(default=64, ge=1)
    max_queued_requests: int = Field(default=256, ge=0)
    generation_config: GenerationConfig = Field(
        default="auto", description="Whether requests' defaults come from the model's generation_config.json."
    )
    scheduling_policy: SchedulingPolicy = Field(
        default="fair", description="Whether requests may have a priority, or clients take turns alone."
    )
    cors_allowed_origins: str | None = Field(
        default=None, description="Origins of web pages that may call the API, separated by commas; * for all."
    )
    max_stored_responses: int = Field(default=1000, ge=0)
    max_stored_response_bytes: int = Field(default=64 << 20, ge=0)
    prefix_cache: bool = Field(default=True, description="Whether sequences that begin alike share the KV of it.")
    speculative_decoding: SpeculativeDecoding = Field(
        default="none", description="Whether streams' next tokens are drafted: where it pays, always, or never."
    )
    max_wait_seconds: float = Field(
        default=300.0, ge=0, description="How long requests wait for a ring that is down; 0: not at all."
    )
    scales_to_zero: bool = Field(
        default=False,
        description="Whether stages may be away because nobody asks: then the time that requests wait for them begins "
        "with the first one.",
    )
    max_replays: int = Field(
        default=5, ge=0, description="How often a sequence is replayed without getting a token in between."
    )
    drain_seconds: float = Field(
        default=35.0, ge=0, description="How long after SIGTERM answers that were begun may go on."
    )

    # store
    store_listen: str | None = None
    source: str | None = Field(default=None, description="hf://, pvc://, https:// or file://.")
    revision: str | None = None
    dtype: Dtype | None = Field(
        default=None, description="What a GGUF file is converted to; None keeps the stored dtype."
    )
    quantization: Quantization = Field(
        default="none", description="What the store makes of the matrices, or asStored: a GGUF file's own types."
    )
    cache_dir: Path | None = None
    token_file: Path | None = None
    hub_ca_file: Path | None = Field(
        default=None, description="Authorities that an hf:// source may be signed by, beside the system's, in PEM."
    )
    volumes_dir: Path | None = Field(
        default=None, description="Where the claims of pvc:// sources are mounted, by name."
    )

    @property
    def identity(self) -> Identity:
        if self.role == "store":
            return Identity(self.namespace, self.pipe, -1, "store")
        return Identity(self.namespace, self.pipe, self.replica, self.role, self.stage)

    def to_environment(self) -> dict[str, str]:
        """Only what differs from the defaults, as `LANGUAGEPIPES_…` variables."""
        values = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
        return {
            PREFIX + name.upper(): str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in values.items()
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> MemberSettings:
        """Raises pydantic.ValidationError naming each wrong variable. Unknown LANGUAGEPIPES_ variables are wrong."""
        values = {name[len(PREFIX) :].lower(): value for name, value in environment.items() if name.startswith(PREFIX)}
        return cls.model_validate(values)
