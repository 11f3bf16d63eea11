"""Which fields of the spec a plan depends on, as a hash: another hash asks for another plan. Pure.

Part of the contract between operator versions, since plans are stored with their hash: a field that is added may only
count where it is not at its default. Nodes, images and what only shapes pods do not count.
"""

from __future__ import annotations

from languagepipes_api.spec import PipeSpec

from languagepipes_operator.digest import digest


def plan_inputs(spec: PipeSpec) -> str:
    """First the model (8 hex digits), then how its layers are split (8 more)."""
    return f"{model_inputs(spec)}{_layout_inputs(spec)}"


def model_inputs(spec: PipeSpec) -> str:
    """Which model it is: the facts of a plan hold for every plan with the same value."""
    return digest({"source": spec.model.source, "revision": spec.model.resolved_from})[:8]


def _layout_inputs(spec: PipeSpec) -> str:
    stages = spec.stages
    split: object = {"count": stages.count, "device": stages.device or "CPU"}
    if stages.items is not None:
        split = [[item.name, item.layers, item.memory_bytes, item.device] for item in stages.items]
    ends = spec.end_model
    layout: dict[str, object] = {
        "dtype": spec.model.dtype,
        "context": spec.model.max_context_length,
        "ends": [ends.local_layers, ends.tail_layers, ends.device],
        "stages": split,
    }
    if spec.model.quantization != "none":
        layout["quantization"] = spec.model.quantization
    return digest(layout)[:8]
