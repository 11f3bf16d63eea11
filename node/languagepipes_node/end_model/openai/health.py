"""GET /healthz and /readyz, for probes: no API key is asked for."""

from __future__ import annotations

import functools
import importlib.metadata

from fastapi import APIRouter, Response

from languagepipes_node.end_model.openai.response_models import Health, NotReady, Readiness, Version
from languagepipes_node.end_model.openai.service import CurrentService

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """200 as long as the process answers."""
    return Health()


@router.get("/health", response_class=Response, responses={503: {"description": "No requests are taken."}})
async def health(service: CurrentService) -> Response:
    """200 while requests are taken, as vLLM's: those that wait for a lost stage too; 503 otherwise. No body."""
    taken = service.bridge.engine.status.accepting and service.bridge.draining is None
    return Response(status_code=200 if taken else 503)


@router.get("/version")
async def version() -> Version:
    """The server's own version."""
    return Version(version=_version())


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("languagepipes")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@router.get("/readyz", response_model=Readiness, responses={503: {"model": NotReady}})
async def readyz(service: CurrentService) -> Readiness | Response:
    """200 while the ring is joined and requests are taken; 503 with the reason otherwise."""
    status = service.bridge.engine.status
    reason = service.bridge.draining or (None if status.ring_ready else status.ring_error)
    if reason is None:
        return Readiness()
    return Response(NotReady(reason=reason).model_dump_json(), 503, media_type="application/json")
