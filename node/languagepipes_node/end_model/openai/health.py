"""GET /healthz and /readyz, for probes: no API key is asked for."""

from __future__ import annotations

from fastapi import APIRouter, Response

from languagepipes_node.end_model.openai.generation import CurrentService
from languagepipes_node.end_model.openai.response_models import Health, NotReady, Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """200 as long as the process answers."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses={503: {"model": NotReady}})
async def readyz(service: CurrentService) -> Readiness | Response:
    """200 while the ring is joined and requests are taken; 503 with the reason otherwise."""
    status = service.bridge.engine.status
    reason = service.bridge.draining or (None if status.ring_ready else status.ring_error)
    if reason is None:
        return Readiness()
    return Response(NotReady(reason=reason).model_dump_json(), 503, media_type="application/json")
