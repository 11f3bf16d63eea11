"""What a weights store answers at /v1/facts and /v1/progress: written by the node, read by the operator and by members.

Only data: who may ask, and over which connection, is decided elsewhere. Readers ignore fields that they do not know.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

StorePhase = Literal["Resolving", "Downloading", "Verifying", "Converting", "Ready", "Failed"]


class Problem(BaseModel):
    """Why the store does not have something, now or for good."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    reason: str = Field(description="One CamelCase word, for conditions.")
    message: str = Field(description="One sentence with the remedy.")


class StoreProgress(BaseModel):
    """The answer of /v1/progress."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    phase: StorePhase = Field(description="What the store does now. Ready: it serves every file, verified.")
    done_bytes: int = Field(default=0, description="Bytes fetched, verified or converted in this phase.")
    total_bytes: int = Field(default=0, description="Bytes of this phase in all; 0 while that is not known.")
    error: Problem | None = Field(
        default=None, description="Why the phase makes no progress. Final in phase Failed; else the store tries again."
    )


class StoreRefusal(BaseModel):
    """The body of an answer whose status is not 200. 503: ask again later; any other status is final."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    error: Problem
