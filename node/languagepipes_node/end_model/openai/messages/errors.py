"""Errors in the form of Anthropic's API (https://docs.anthropic.com/en/api/errors), with the usual statuses."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field

from languagepipes_node.end_model.openai.errors import ApiError, UnsupportedParameter

PATHS = "/v1/messages"  # and what is below

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    431: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class MessagesErrorDetail(BaseModel):
    """What went wrong."""

    type: Literal[
        "invalid_request_error", "authentication_error", "not_found_error", "timeout_error", "request_too_large",
        "rate_limit_error", "api_error", "overloaded_error",
    ]  # fmt: skip
    message: str = Field(description="For people. It names the field of the request that is wrong.")
    details: dict[str, Any] | None = Field(
        None, description="For clients that sent 'thread': that they are to send the conversation without it."
    )


class MessagesErrorResponse(BaseModel):
    """Anthropic's error object."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str = Field(description="That of the answer's `request-id`.")


def is_of_messages(path: str) -> bool:
    """Whether errors of a route have this form."""
    return path == PATHS or path.startswith(PATHS + "/")


def error_object(error: ApiError, request_id: str) -> bytes:
    kind = _TYPES.get(error.status, "invalid_request_error")
    detail: dict[str, Any] = {"type": kind, "message": error.message}
    if isinstance(error, UnsupportedParameter) and error.param == "thread":
        # The anthropic client's tool runner asks for a thread at first, and does without when it reads this.
        detail["details"] = {"error_code": "thread_unsupported_request"}
    return orjson.dumps({"type": "error", "error": detail, "request_id": request_id})


def in_this_form(documented: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """What FastAPI's `responses=` needs to describe the same errors in this form."""
    return {status: {**described, "model": MessagesErrorResponse} for status, described in documented.items()}
