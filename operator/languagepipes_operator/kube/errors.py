"""What a request to the API server can end in.

KubeError                  the API server refused, or did not answer
├── NotFound               404
├── Conflict               409: changed meanwhile, or another UID
│   └── AlreadyExists      409 on create
├── Expired                410: the resource version is too old; list again
├── Invalid                400, 413, 415, 422: the object itself is refused
├── Forbidden              403: names what may not be done
└── Unavailable            5xx, or no answer at all
    ├── Throttled          429
    ├── Broken             500: an admission webhook that is down, or an object that the API server chokes on
    └── Unauthorized       401: the token is not good, or no longer; the next try reads it anew
RevisionWentBack           the API server knows less than it once told: etcd was restored from a backup
NotLeading                 a write was asked for while another operator may act
ConfigurationError         there is no usable kubeconfig or service account
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ConfigurationError(Exception):
    """Names where was looked, and the remedy."""


class KubeError(Exception):
    """code: the HTTP status, or 0 without an answer. reason: as metav1.Status spells it. causes: its details."""

    def __init__(self, message: str, *, code: int = 0, reason: str = "", retry_after_seconds: float | None = None):
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class NotFound(KubeError):
    """There is no such object, or no such kind."""


class Conflict(KubeError):
    """The object changed meanwhile, or is another one under the same name."""


class AlreadyExists(Conflict):
    """The name is taken."""


class Expired(KubeError):
    """The resource version is too old to continue from."""


class Invalid(KubeError):
    """The object is refused as it stands; trying again changes nothing."""


class Forbidden(KubeError):
    """RBAC (or admission) refuses."""


class Unavailable(KubeError):
    """No answer, or one that shows that the API server is not well."""


class Throttled(Unavailable):
    """Too many requests."""


class Broken(Unavailable):
    """The API server answers, and cannot do this one thing: it may pass, and it may stay for ever."""


class Unauthorized(Unavailable):
    """The API server does not know who asks. Tokens are turned over by the kubelet, so this may pass."""


class RevisionWentBack(Exception):
    """Nothing that was read before can be trusted: every cache must be filled anew."""


class NotLeading(Exception):
    """Nothing was sent."""


_BY_CODE: Mapping[int, type[KubeError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: Throttled,
    500: Broken,
}


def error_of(code: int, status: Mapping[str, Any], *, what: str, retry_after: str | None = None) -> KubeError:
    """The exception for an answer's status code and metav1.Status."""
    reason = str(status.get("reason") or "")
    text = f"{what}: {status.get('message') or f'HTTP {code}'}"
    kind = _BY_CODE.get(code, Unavailable if code >= 500 else KubeError)
    if kind is Conflict and reason == "AlreadyExists":
        kind = AlreadyExists
    return kind(text, code=code, reason=reason, retry_after_seconds=_seconds(retry_after, status))


def _seconds(retry_after: str | None, status: Mapping[str, Any]) -> float | None:
    stated = retry_after or (status.get("details") or {}).get("retryAfterSeconds")
    try:
        return None if stated is None else float(stated)
    except (TypeError, ValueError):
        return None
