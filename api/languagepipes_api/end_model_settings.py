"""What a pipe's spec says to its End Model: the same in a pod and under `languagepipes up`."""

from __future__ import annotations

from typing import TypedDict

from languagepipes_api.member_settings import GenerationConfig, SchedulingPolicy, SpeculativeDecoding
from languagepipes_api.plan import ToolParser
from languagepipes_api.spec import LanguagePipe


class EndModelSettings(TypedDict):
    """Fields of `MemberSettings`."""

    served_name: str
    tool_parser: ToolParser
    max_concurrent_requests: int
    max_queued_requests: int
    generation_config: GenerationConfig
    scheduling_policy: SchedulingPolicy
    cors_allowed_origins: str | None
    max_stored_responses: int
    max_stored_response_bytes: int
    prefix_cache: bool
    speculative_decoding: SpeculativeDecoding
    max_wait_seconds: float
    scales_to_zero: bool
    max_replays: int


def end_model_settings(pipe: LanguagePipe) -> EndModelSettings:
    """All but addresses, files and devices."""
    server, recovery = pipe.spec.server, pipe.spec.recovery
    return {
        "served_name": pipe.served_name,
        "tool_parser": pipe.spec.model.tool_parser,
        "max_concurrent_requests": server.max_concurrent_requests,
        "max_queued_requests": server.max_queued_requests,
        "generation_config": server.generation_config,
        "scheduling_policy": server.scheduling_policy,
        "cors_allowed_origins": None if server.cors is None else ",".join(server.cors.allowed_origins),
        "max_stored_responses": server.stored_responses.count,
        "max_stored_response_bytes": server.stored_responses.memory_bytes,
        "prefix_cache": server.prefix_cache,
        "speculative_decoding": server.speculative_decoding,
        "max_wait_seconds": recovery.max_wait_seconds,
        "scales_to_zero": pipe.spec.scales_to_zero,
        "max_replays": recovery.max_replays,
    }
