"""A plan as people read it: one row a member, then the reasons."""

from __future__ import annotations

from languagepipes_api.plan import EndModelAssignment, Plan, StageAssignment
from languagepipes_api.quantity import format_bytes
from rich.console import Console
from rich.table import Table
from rich.text import Text

from languagepipes_operator.planning.stages import END_MODEL


def print_plan(plan: Plan, console: Console, *, title: str) -> None:
    """Layers count from 0 and are inclusive. Text from the spec is printed as it is, never read as markup."""
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("member", no_wrap=True)
    table.add_column("layers", no_wrap=True)
    table.add_column("device")
    for column in ("weights", "KV", "overhead", "total", "a step"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    end = plan.end_model
    around = [str(layers) for layers in (end.local_layers, end.tail_layers) if len(layers)]
    _add(table, END_MODEL, ", ".join(around), end, plan.slowest_station)
    for stage in plan.stages:
        _add(table, stage.name, str(stage.layers), stage, plan.slowest_station)
    console.print(table)
    console.print()
    for reason in plan.reasons:
        console.print(Text(reason))
    console.print(
        Text(
            f"Model {plan.family}, {plan.layer_count} layers, revision {plan.model_revision}, {_numbers(plan)}; "
            f"plan {plan.hash}; slowest member {plan.slowest_station}, KV limited by {plan.kv_limited_by}."
        )
    )


def _numbers(plan: Plan) -> str:
    return plan.dtype if plan.quantization == "none" else f"{plan.quantization} weights, {plan.dtype} otherwise"


def _add(table: Table, name: str, layers: str, share: EndModelAssignment | StageAssignment, slowest: str) -> None:
    total = share.weight_bytes + share.kv_bytes + share.overhead_bytes
    table.add_row(
        Text(name + (" *" if name == slowest else "")),
        layers,
        share.device,
        *map(format_bytes, (share.weight_bytes, share.kv_bytes, share.overhead_bytes, total, share.step_bytes)),
        Text(share.reason),
    )
