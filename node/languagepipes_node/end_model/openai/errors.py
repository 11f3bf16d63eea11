"""Every error that a client can see, as OpenAI's error object, with its HTTP status.

    ApiError
    ├── InvalidRequest            400  (UnsupportedParameter, ContextLengthExceeded)
    ├── Unauthorised              401
    ├── ModelNotFound             404
    ├── ResponseNotFound          404
    ├── UnknownRoute              404
    ├── MethodNotAllowed          405
    ├── RequestTimeout            408
    ├── BodyTooLarge              413
    ├── UnsupportedMediaType      415
    ├── HeadTooLarge              431
    ├── QueueFull                 429, with Retry-After
    ├── RingDown                  503, with Retry-After, and the connection is closed
    ├── ShuttingDown              503, with Retry-After, and the connection is closed
    └── InternalError             500

The object is `{"error": {"message", "type", "param", "code"}}`
(https://platform.openai.com/docs/guides/error-codes). No message holds text of a prompt or of an answer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import orjson
from pydantic import BaseModel, Field

from languagepipes_node.end_model.requests import Failure

RETRY_AFTER_SECONDS = 2


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None = Field(description="For programs.")


class ErrorResponse(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


class ApiError(Exception):
    """An error with an HTTP status. `param` is the request's field, `code` is for programs, `message` for people."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    outcome: ClassVar[str] = "error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return []

    def to_json(self) -> bytes:
        """The error object, as it stands in a response's body and in an SSE event."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )


class InvalidRequest(ApiError, ValueError):
    """A ValueError, so that pydantic's validators may raise it: it becomes one of their findings."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"
    outcome = "invalid"


class UnsupportedParameter(InvalidRequest):
    """A parameter, value or content type of the OpenAI API that this server does not serve."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorised(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    outcome = "unauthorised"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"www-authenticate", b"Bearer")]


class ModelNotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"
    outcome = "invalid"


class ResponseNotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "response_not_found"
    outcome = "invalid"


class UnknownRoute(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "unknown_url"
    outcome = "invalid"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"
    outcome = "invalid"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"allow", self.allow.encode("latin-1"))]


class _Closes(ApiError):
    """After this answer the connection cannot, or should not, carry another request."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"connection", b"close")]


class RequestTimeout(_Closes):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    outcome = "invalid"


class BodyTooLarge(_Closes):
    """The rest of the body is not read."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"
    outcome = "invalid"


class HeadTooLarge(_Closes):
    status = 431
    type = "invalid_request_error"
    code = "request_too_large"
    outcome = "invalid"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"
    outcome = "invalid"


class _RetryLater(ApiError):
    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"retry-after", str(RETRY_AFTER_SECONDS).encode()), *super().headers]


class QueueFull(_RetryLater):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    outcome = "queue_full"


class RingDown(_RetryLater, _Closes):
    """The next attempt needs a new connection to reach another replica: the Service chooses one for each connection."""

    status = 503
    type = "server_error"
    code = "ring_down"
    outcome = "ring_down"


class ShuttingDown(_RetryLater, _Closes):
    """The next attempt needs a new connection to reach another replica, or the process that follows this one."""

    status = 503
    type = "server_error"
    code = "shutting_down"
    outcome = "shutting_down"


class InternalError(ApiError):
    code = "internal_error"


def documented(*errors: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """What FastAPI's `responses=` needs to describe `errors`."""
    return {
        error.status: {
            "model": ErrorResponse,
            "description": _MEANINGS[error],
            "headers": _HEADERS.get(error, {}),
        }
        for error in errors
    }


_MEANINGS: dict[type[ApiError], str] = {
    InvalidRequest: "The request is wrong; `param` names the field.",
    Unauthorised: "The API key is absent or wrong.",
    ModelNotFound: "The model is not the one that is served.",
    ResponseNotFound: "The response is not stored here, or not any more.",
    RequestTimeout: "The body did not arrive in time.",
    BodyTooLarge: "The body is larger than the server's limit.",
    UnsupportedMediaType: "The body is not plain JSON.",
    QueueFull: "The server has as many requests as it admits.",
    InternalError: "The server failed to handle the request.",
    RingDown: "The model is not being served at the moment, or the server is being shut down.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer"}}}
_CLOSE = {"Connection": {"description": "Ask again on a new one.", "required": True, "schema": {"const": "close"}}}
_HEADERS: dict[type[ApiError], dict[str, Any]] = {
    Unauthorised: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    QueueFull: _RETRY_AFTER,
    RingDown: _RETRY_AFTER | _CLOSE,
}


def from_failure(failure: Failure) -> ApiError:
    """What a client sees of an engine's failure."""
    match failure.code:
        case "queue_full":
            return QueueFull(failure.message)
        case "ring_down":
            return RingDown(f"the ring of stages is down, ask again in a moment: {failure.message}")
        case "shutting_down":
            return ShuttingDown(failure.message)
        case _:
            return InternalError(failure.message)
