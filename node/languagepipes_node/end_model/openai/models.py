"""GET /v1/models and /v1/models/{model}: the one model that is served."""

from __future__ import annotations

from fastapi import APIRouter

from languagepipes_node.end_model.openai.errors import ModelNotFound, documented
from languagepipes_node.end_model.openai.response_models import Model, ModelList
from languagepipes_node.end_model.openai.service import CurrentService, Service

router = APIRouter(tags=["models"])


@router.get("/models")
async def list_models(service: CurrentService) -> ModelList:
    """The models that are served: one."""
    return ModelList(data=[_served(service)])


@router.get("/models/{model:path}", responses=documented(ModelNotFound))
async def retrieve_model(model: str, service: CurrentService) -> Model:
    """One model by its name."""
    if model != service.served_name:
        raise ModelNotFound(
            f"The model '{model[:128]}' does not exist. This server serves '{service.served_name}'.", param="model"
        )
    return _served(service)


def _served(service: Service) -> Model:
    return Model(id=service.served_name, created=service.created, max_model_len=service.max_context_length)
