"""The stages that a spec asks for, whichever way it was written."""

from __future__ import annotations

from languagepipes_api.plan import Device
from languagepipes_api.spec import PipeSpec, StageSpec
from languagepipes_api.template import PodTemplate

END_MODEL = "end-model"


def wanted(spec: PipeSpec) -> tuple[StageSpec, ...]:
    """The list, or what a count stands for: stages named by their place, with one device and template."""
    if spec.stages.items is not None:
        return spec.stages.items
    device: Device = spec.stages.device or "CPU"
    template = spec.stages.template
    return tuple(
        StageSpec(name=f"stage-{place}", device=device, template=template) for place in range(1, spec.stages.size + 1)
    )


def templates(spec: PipeSpec) -> dict[str, PodTemplate | None]:
    """Each member's, by its name."""
    return {END_MODEL: spec.end_model.template, **{stage.name: stage.template for stage in wanted(spec)}}


def title_of(name: str) -> str:
    """A member's name to people."""
    return "the End Model" if name == END_MODEL else f"stage {name}"
