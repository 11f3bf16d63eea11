"""What a weights store answers at /v1/facts, /v1/progress and /v1/arithmetic/KEY: written by the node, read by the
operator and by members.

Only data: who may ask, and over which connection, is decided elsewhere. Readers ignore fields that they do not know.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class ArithmeticChoice(BaseModel):
    """How a member computes steps of `rows` rows and more."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rows: int = Field(ge=1, le=1 << 20)
    dtype: Literal["float32", "bfloat16", "float16"] = Field(description="Of the activations.")
    native: bool = Field(description="Whether products are by the node's own kernels.")
    whole: bool = Field(description="Whether all layers of a step are one native call.")


class ArithmeticChoices(BaseModel):
    """What a member measured to be fastest on its machine, by number of rows, ascending from 1. Written by members at
    /v1/arithmetic/KEY, where KEY is a SHA-256, and read there by others on such machines with such weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    choices: tuple[ArithmeticChoice, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _ascends(self) -> ArithmeticChoices:
        rows = [each.rows for each in self.choices]
        if rows[0] != 1 or rows != sorted(set(rows)):
            raise ValueError(f"choices: rows are {rows}; they have to ascend from 1")
        return self
