"""Whether a spec suits a model at all, before any layer is assigned: templates, context length, number of layers.

Knows no nodes. Each refusal is a PlanError with the numbers and the remedy.
"""

from __future__ import annotations

from languagepipes_api.facts import TRANSFORMERS_FAMILIES, ModelFacts
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
    if spec.store is not None:
        check_template(spec.store.template, "CPU", "the weights store")


def check_model(spec: PipeSpec, facts: ModelFacts) -> None:
    """Raises PlanError(ContextTooLong, QuantizationUnsupported or NothingQuantised)."""
    _check_quantization(spec, facts)
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


def _check_quantization(spec: PipeSpec, facts: ModelFacts) -> None:
    mode = spec.model.quantization
    if mode == "none" or mode in facts.quantised:
        return
    if facts.family in TRANSFORMERS_FAMILIES:
        raise PlanError(
            "QuantizationUnsupported",
            f"quantization is {mode}, and the layers of {facts.family} are transformers' own, which take no quantised "
            "weights: set spec.model.quantization to none",
        )
    if mode == "asStored":
        raise PlanError(
            "NothingQuantised",
            f"quantization is asStored, and {spec.model.source} holds no matrix in a type that is kept (GGUF's Q8_0, "
            f"Q5_0, Q4_0, Q4_1, Q4_K, Q6_K and MXFP4); it is stored as {facts.stored_dtype}: set "
            "spec.model.quantization to int8, int4 or none",
        )
    raise PlanError(
        "QuantizationUnsupported",
        f"quantization is {mode}, and no matrix of {spec.model.source} can be quantised (their rows are no multiples "
        "of 32 values), or its facts are of an older store: set spec.model.quantization to none",
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
