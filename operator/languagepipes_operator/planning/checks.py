"""Whether a spec suits a model at all, before any layer is assigned: templates, context length, number of layers.

Knows no nodes. Each refusal is a PlanError with the numbers and the remedy.
"""

from __future__ import annotations

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import LayerRange
from languagepipes_api.spec import PipeSpec

from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.planning.requests import check_template
from languagepipes_operator.planning.stages import END_MODEL, title_of, wanted


def check_templates(spec: PipeSpec) -> None:
    """Whether pods can be created from the templates at all, whatever the plan. Raises PlanError(InvalidTemplate)."""
    check_template(spec.end_model.template, spec.end_model.device, title_of(END_MODEL))
    for stage in wanted(spec):
        check_template(stage.template, stage.device, title_of(stage.name))


def check_model(spec: PipeSpec, facts: ModelFacts) -> None:
    """Raises PlanError(ContextTooLong)."""
    asked = spec.model.max_context_length
    if asked > facts.max_position:
        # An API server writes defaults out, so whether somebody wrote this one cannot be seen.
        default = type(spec.model).model_fields["max_context_length"].default
        by_default = ", its default" if asked == default else ""
        raise PlanError(
            "ContextTooLong",
            f"maxContextLength is {asked}{by_default}, and the model has {facts.max_position} positions: "
            f"set spec.model.maxContextLength to at most {facts.max_position}",
        )


def end_ranges(spec: PipeSpec, facts: ModelFacts) -> tuple[LayerRange, LayerRange, LayerRange]:
    """The End Model's layers at the front, the layers of the stages, and the End Model's layers at the back.

    Raises PlanError(NoLayersForStages or TooManyStages).
    """
    local, tail, layers = spec.end_model.local_layers, spec.end_model.tail_layers, facts.layer_count
    if local + tail >= layers:
        raise PlanError(
            "NoLayersForStages",
            f"localLayers {local} + tailLayers {tail} = {local + tail} of {layers} layers: none is left for "
            f"the "
            f"stages; their sum must be at most {layers - 1}",
        )
    if layers - local - tail < spec.stages.size:
        raise PlanError(
            "TooManyStages",
            f"{spec.stages.size} stages, but {layers} layers less {local + tail} at the End Model leave "
            f"{layers - local - tail}: use at most {layers - local - tail} stages",
        )
    return LayerRange(0, local), LayerRange(local, layers - tail), LayerRange(layers - tail, layers)
