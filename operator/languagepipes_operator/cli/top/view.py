"""A reading as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from languagepipes_api.quantity import format_bytes
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from languagepipes_operator.cli.top.readings import Change, Member, Reading, total
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.status.condition_state import condition_in

_NOTHING = "–"
_HOT = 0.9


def overview(reading: Reading, change: Change) -> RenderableType:
    """A line for each pipe, by what its End Models say."""
    table = _table("namespace", "pipe", "phase")
    for name in ("replicas", "tokens/s", "running", "waiting", "KV", "first token", "between tokens"):
        table.add_column(name, justify="right")
    table.add_column("reason", overflow="fold")
    for pipe in sorted(reading.pipes, key=lambda each: (each["metadata"]["namespace"], each["metadata"]["name"])):
        ends = reading.of(pipe)
        ready = _ready(pipe)
        table.add_row(
            pipe["metadata"]["namespace"],
            pipe["metadata"]["name"],
            str(_status(pipe).get("phase") or "Pending"),
            _replicas(pipe),
            *_of_end_models(ends, change)[:6],
            "" if ready.get("status") == "True" else str(ready.get("reason", "")),
        )
    return table


def detail(pipe: Manifest, members: Sequence[Member], change: Change) -> RenderableType:
    """One pipe: its head, then each replica's ring."""
    parts: list[RenderableType] = [*_head(pipe)]
    layers = {str(stage["name"]): str(stage.get("layers", "")) for stage in _status(pipe).get("stages") or ()}
    for replica in sorted({member.replica for member in members if member.replica >= 0}):
        own = [member for member in members if member.replica == replica]
        parts += [Text(), _ring_line(replica, own, change), _ring(own, layers, change)]
    parts += [Text(), *(_store_line(member) for member in members if member.replica < 0)]
    return Group(*parts)


def _head(pipe: Manifest) -> Iterable[Text]:
    status, ready = _status(pipe), _ready(pipe)
    line = Text()
    line.append(f"{pipe['metadata']['namespace']}/{pipe['metadata']['name']}", style="bold")
    line.append(f"  {status.get('phase') or 'Pending'}", style="green" if ready.get("status") == "True" else "yellow")
    line.append(f"  replicas {_replicas(pipe)}  {pipe['spec']['model']['source']}")
    if status.get("url"):
        line.append(f"  {status['url']}")
    yield line
    if ready and ready.get("status") != "True":
        yield Text(f"{ready.get('reason')}: {ready.get('message')}", style="yellow")


def _ring_line(replica: int, members: Sequence[Member], change: Change) -> Text:
    ends = [member for member in members if member.role == "end-model"]
    up = total(ends, "languagepipes_ring_ready")
    line = Text(f"replica {replica}", style="bold")
    if up is None:
        line.append("  no word of its ring", style="yellow")
    else:
        line.append("  ring up" if up else "  ring down", style="green" if up else "bold red")
    words = ("tokens/s", "running", "waiting", "KV", "first token", "between tokens", "hop", "epoch", "replays")
    for word, value in zip(words, _of_end_models(ends, change), strict=True):
        line.append(f"   {word} ", style="dim")
        line.append(value)
    return line


def _of_end_models(ends: Sequence[Member], change: Change) -> tuple[str, ...]:
    """In the order of `_ring_line`. Times are means of the interval; of several End Models, of the slowest."""
    return (
        _number(change.total_rate(ends, "languagepipes_generated_tokens_total"), "{:.1f}"),
        _number(total(ends, "languagepipes_running_sequences")),
        _number(total(ends, "languagepipes_waiting_sequences")),
        _kv(ends),
        _slowest(ends, change, "languagepipes_time_to_first_token_seconds"),
        _slowest(ends, change, "languagepipes_time_between_tokens_seconds"),
        _slowest(ends, change, "languagepipes_hop_seconds"),
        _number(max((each.value("languagepipes_epoch") or 0 for each in ends), default=None)),
        _number(total(ends, "languagepipes_replays_total")),
    )


def _ring(members: Sequence[Member], layers: dict[str, str], change: Change) -> Table:
    table = _table("member", "node", "layers", "state")
    for name in ("busy", "a frame", "frames/s", "sent/s", "KV", "memory", "restarts"):
        table.add_column(name, justify="right")
    for member in members:
        busy = change.rate(member, "languagepipes_step_seconds_sum")
        sent = change.rate(member, "languagepipes_wire_bytes_total", direction="sent")
        memory = member.value("process_resident_memory_bytes")
        table.add_row(
            member.name,
            member.node or _NOTHING,
            layers.get(member.name, "both ends" if member.role == "end-model" else _NOTHING),
            Text(member.state if not member.why else f"{member.state}; no metrics", style=_style(member)),
            Text(_share(busy), style="bold yellow" if busy is not None and busy >= _HOT else ""),
            _time(change.mean(member, "languagepipes_step_seconds")),
            _number(change.rate(member, "languagepipes_step_seconds_count"), "{:.1f}"),
            _NOTHING if sent is None else format_bytes(round(sent)),
            _kv([member]),
            _NOTHING if memory is None else format_bytes(round(memory)),
            str(member.restarts),
        )
    return table


def _store_line(member: Member) -> Text:
    return Text(f"{member.name} on {member.node or 'no node yet'}: {member.state}", style=_style(member))


def _style(member: Member) -> str:
    return "green" if member.state == "Ready" and not member.why else "yellow"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _status(pipe: Manifest) -> dict[str, Any]:
    return dict(pipe.get("status") or {})


def _ready(pipe: Manifest) -> dict[str, Any]:
    return condition_in(pipe.get("status"), "Ready")


def _replicas(pipe: Manifest) -> str:
    """Ready of all that are wanted: by autoscaling if that is on."""
    status = _status(pipe)
    asked = pipe["spec"].get("replicas", 1)
    if pipe["spec"].get("autoscaling"):
        asked = status.get("desiredReplicas", asked)
    return f"{status.get('readyReplicas', 0)}/{asked}"


def _kv(members: Sequence[Member]) -> str:
    used, blocks = (total(members, f"languagepipes_kv_blocks_{part}") for part in ("used", "total"))
    return _NOTHING if used is None or not blocks else _share(used / blocks)


def _slowest(members: Sequence[Member], change: Change, histogram: str) -> str:
    means = [mean for member in members if (mean := change.mean(member, histogram)) is not None]
    return _time(max(means, default=None))


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.0f} %"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _number(value: float | None, form: str = "{:.0f}") -> str:
    return _NOTHING if value is None else form.format(value)
