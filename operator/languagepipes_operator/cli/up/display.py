"""Shows snapshots: a live table on a terminal, else one plain line per change. Decides nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, TextIO

from languagepipes_api.quantity import format_bytes
from languagepipes_api.store_answers import StoreProgress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from languagepipes_operator.cli.up.snapshot import STORE, MemberView, Snapshot

_STATE_STYLES = {
    "ready": "green",
    "failed": "bold red",
    "silent": "bold red",
    "restarting": "bold yellow",
}
_BAR_WIDTH = 24


class Display(Protocol):
    """A context that shows what it is given."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the present state; cheap if nothing changed."""
        ...

    def say(self, *lines: str) -> None:
        """Lines that stay on the screen."""
        ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display_on(stream: TextIO = sys.stdout) -> Display:
    """A table where `stream` is a terminal that can redraw, plain lines elsewhere."""
    console = Console(file=stream)
    return TableDisplay(console) if console.is_terminal and not console.is_dumb_terminal else LineDisplay(stream)


class TableDisplay:
    """Redraws in place; what is said scrolls away above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Redrawn by us alone: a thread of its own would draw while members are started.
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def show(self, snapshot: Snapshot) -> None:
        self._live.update(table(snapshot), refresh=True)

    def say(self, *lines: str) -> None:
        for line in lines:
            # soft_wrap: a curl line must stay one line, to be copied.
            self._console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> TableDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class LineDisplay:
    """One line per change, with the seconds since the start, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started_at = time.monotonic()
        self._last: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        elapsed = time.monotonic() - self._started_at
        self._write(*(f"{elapsed:7.1f} s  {line}" for line in changes(self._last, snapshot)))
        self._last = snapshot

    def say(self, *lines: str) -> None:
        self._write(*lines)

    def _write(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self._stream)
        self._stream.flush()

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()


def table(snapshot: Snapshot) -> RenderableType:
    """The whole picture: the fetch, every member, the ring."""
    members = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("member", "runs", "state", "weights", "restarts", ""):
        members.add_column(heading, justify="right" if heading == "restarts" else "left", no_wrap=heading != "")
    for member in snapshot.members:
        style = _STATE_STYLES.get(member.state, "")
        restarts = Text(str(member.restarts), style="yellow" if member.restarts else "")
        detail = "" if member.state == "ready" else member.detail
        members.add_row(
            member.name,
            member.work,
            Text(member.state, style=style),
            _weights(member),
            restarts,
            Text(detail),
        )
    parts: list[RenderableType] = [Text(f"pipe {snapshot.pipe}", style="bold")]
    if snapshot.store is not None and snapshot.store.phase != "Ready":
        parts.append(_fetch(snapshot.store))
    parts += [members, _ring(snapshot)]
    return Group(*parts)


def changes(before: Snapshot | None, now: Snapshot) -> list[str]:
    """What is worth a line between two snapshots; a fetch is worth one for each tenth."""
    former = {member.name: member for member in before.members} if before else {}
    lines = []
    if (fetch := _fetch_text(now)) and fetch != (_fetch_text(before) if before else ""):
        lines.append(f"weights: {fetch}")
    for member in now.members:
        line = _member_text(member)
        if member.name not in former or line != _member_text(former[member.name]):
            lines.append(line)
    if now.epoch is not None and now.epoch != (before.epoch if before else None):
        lines.append(f"ring: epoch {now.epoch}")
    return lines


def where_layers_run(members: Sequence[MemberView]) -> list[str]:
    """One line for each member that holds weights."""
    width = max((len(member.name) for member in members), default=0)
    return [
        f"  {member.name:<{width}}  {member.work}  (pid {member.pid}, {format_bytes(member.total_bytes)})"
        for member in members
        if member.work and member.total_bytes
    ]


def _member_text(member: MemberView) -> str:
    words = [f"{member.name}:", member.state]
    if member.state == "loading" and member.total_bytes and member.name != STORE:
        words.append(format_bytes(member.total_bytes))
    # A countdown is no change of state.
    # What the store waits for is told with the weights.
    if member.state in ("failed", "waiting", "joining", "silent") and member.detail and member.name != STORE:
        words.append(f"({member.detail})")
    if member.state == "ready":
        words.append(f"({member.work})" if member.work else "")
    if member.restarts:
        words.append(f"[restarts: {member.restarts}]")
    return " ".join(word for word in words if word)


def _fetch_text(snapshot: Snapshot) -> str:
    store = snapshot.store
    if store is None:
        return ""
    text = store.phase.lower()
    if store.total_bytes and store.phase != "Ready":
        tenths = store.done_bytes * 10 // store.total_bytes
        text += f" {format_bytes(store.total_bytes)}, {tenths * 10} %"
    if store.error is not None:
        text += f" ({store.error.reason}: {store.error.message})"
    return text


def _fetch(store: StoreProgress) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    amount = f"{format_bytes(store.done_bytes)} of {format_bytes(store.total_bytes)}" if store.total_bytes else ""
    line.add_row(
        store.phase,
        ProgressBar(total=store.total_bytes or 1, completed=store.done_bytes, width=_BAR_WIDTH),
        amount,
    )
    if store.error is None:
        return line
    return Group(line, Text(f"{store.error.reason}: {store.error.message}", style="yellow"))


def _weights(member: MemberView) -> RenderableType:
    if not member.total_bytes:
        return ""
    if member.loaded_bytes >= member.total_bytes:
        return format_bytes(member.total_bytes)
    return f"{format_bytes(member.loaded_bytes)} of {format_bytes(member.total_bytes)}"


def _ring(snapshot: Snapshot) -> Text:
    if snapshot.ready and snapshot.url:
        return Text(f"ring: epoch {snapshot.epoch or '?'}  {snapshot.url}", style="green")
    return Text("ring: down" if snapshot.epoch is None else f"ring: down since epoch {snapshot.epoch}", style="dim")
