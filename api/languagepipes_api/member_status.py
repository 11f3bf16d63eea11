"""What a member answers at /status on its telemetry port: written by the node, read by the operator and by `up`.

Images of different versions meet in one pipe: readers ignore fields that they do not know, and every field that a
member may leave out has a default. The answer never has text of a request.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from languagepipes_api.store_answers import StoreProgress


class MemberStatus(BaseModel):
    """One member at one moment. A field of another role, or of a later moment, is absent and has its default."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: str = Field(default="", description="store, stage or end-model.")
    state: str = Field(description="starting, waiting, loading, ready or failed. A newer member may have others.")
    message: str = Field(default="", description="What it does in this state, or why it failed; may be empty.")
    loaded_bytes: int = Field(default=0, description="Bytes of weights that are in place.")
    total_bytes: int = Field(default=0, description="Bytes of weights that it loads in all; 0 while not known.")
    bundle: str = Field(
        default="",
        description="SHA-256 (hex) of the ca.crt that its next connection uses; empty without a usable certificate. "
        "The operator rotates the CA by it.",
    )
    leaf_not_after: str | None = Field(
        default=None, description="When the certificate of its next connection expires (RFC 3339, UTC)."
    )
    # The members of a ring: stages and the End Model.
    epoch: int | None = Field(default=None, description="Counter of the ring's epoch; 0 before the first one.")
    ring_error: str = Field(default="", description="Why the ring is down; empty while it is up.")
    # The End Model alone.
    ring_ready: bool = Field(default=True, description="Whether the ring health check passed.")
    running: int | None = Field(default=None, description="Requests that are being computed.")
    waiting: int | None = Field(default=None, description="Requests in the queue.")
    recovering: bool = Field(default=False, description="Whether requests wait while the ring is down.")
    replays: int = Field(default=0, description="Sequences replayed after a lost epoch, since it started.")
    # The weights store alone.
    progress: StoreProgress | None = Field(default=None, description="As the store answers at /v1/progress.")

    @property
    def open_requests(self) -> int | None:
        """Those that run and those that wait; None where it is no End Model's report, or an early one."""
        return None if self.running is None else self.running + (self.waiting or 0)

    def to_json(self) -> dict[str, Any]:
        """The fields that were set; those of other roles are left out."""
        return self.model_dump(exclude_unset=True)
