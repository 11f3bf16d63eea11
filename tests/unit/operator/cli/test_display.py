"""What a user reads while a pipe comes up: one line a change without a terminal, one table with one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.store_answers import Problem, StoreProgress
from languagepipes_operator.cli.up.display import LineDisplay, TableDisplay, changes, display_on, table
from languagepipes_operator.cli.up.observe import Observation
from languagepipes_operator.cli.up.processes import Command, Death, Member
from languagepipes_operator.cli.up.snapshot import MemberView, Snapshot, take
from rich.console import Console

GIB = 1024**3
STAGE = MemberView(name="gpu", work="layers 1-20", state="loading", loaded_bytes=GIB, total_bytes=2 * GIB, pid=12)
END = MemberView(name="end-model", work="embedding, layer 0, head", state="ready", total_bytes=GIB, pid=13)
URL = "http://127.0.0.1:8000/v1"


def drawn(snapshot: Snapshot) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(snapshot))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_fetch_is_worth_a_line_for_each_tenth() -> None:
    snapshots = [
        Snapshot("tiny", store=StoreProgress(phase="Downloading", done_bytes=done * GIB, total_bytes=40 * GIB))
        for done in (0, 1, 3, 4, 5, 39)
    ]
    lines = [line for before, now in zip([None, *snapshots], snapshots, strict=False) for line in changes(before, now)]
    assert lines == [
        "weights: downloading 40 GiB, 0 %",
        "weights: downloading 40 GiB, 10 %",
        "weights: downloading 40 GiB, 90 %",
    ]


def test_loading_is_one_line_however_far_it_is() -> None:
    before = Snapshot("tiny", members=(STAGE,))
    now = Snapshot("tiny", members=(replace(STAGE, loaded_bytes=GIB + 5),))
    assert changes(None, before) == ["gpu: loading 2 GiB"]
    assert changes(before, now) == []


def test_a_member_that_comes_back_is_told_with_its_restarts() -> None:
    waiting = Snapshot("tiny", members=(replace(STAGE, state="restarting", detail="in 3 s", restarts=1),))
    sooner = Snapshot("tiny", members=(replace(STAGE, state="restarting", detail="in 2 s", restarts=1),))
    back = Snapshot("tiny", members=(replace(STAGE, state="ready", restarts=2),), epoch=3)
    assert changes(waiting, sooner) == []
    assert changes(sooner, back) == ["gpu: ready (layers 1-20) [restarts: 2]", "ring: epoch 3"]


def test_a_source_that_is_tried_again_is_told_once() -> None:
    problem = Problem(reason="HubUnreachable", message="no route; tried again in 4 s")
    before = Snapshot("tiny", store=StoreProgress(phase="Resolving", error=problem))
    assert changes(None, before) == ["weights: resolving (HubUnreachable: no route; tried again in 4 s)"]
    assert changes(before, replace(before)) == []


def test_lines_carry_the_seconds_since_the_start() -> None:
    stream = io.StringIO()
    with LineDisplay(stream) as display:
        display.show(Snapshot("tiny", members=(END,)))
        display.say("here it is")
    assert stream.getvalue() == "    0.0 s  end-model: ready (embedding, layer 0, head)\nhere it is\n"


def test_the_table_shows_bytes_layers_states_and_restarts() -> None:
    store = StoreProgress(phase="Downloading", done_bytes=GIB, total_bytes=4 * GIB)
    text = drawn(Snapshot("tiny", members=(replace(STAGE, restarts=3), END), store=store))
    assert "Downloading" in text
    assert "1 GiB of 4 GiB" in text
    assert "layers 1-20" in text
    assert "1 GiB of 2 GiB" in text
    assert "3" in text
    assert "ring: down" in text


def test_the_table_of_a_ready_pipe_shows_epoch_and_url() -> None:
    members = (replace(STAGE, state="ready"), END)
    text = drawn(Snapshot("tiny", members=members, epoch=2, url=URL, store=StoreProgress(phase="Ready")))
    assert f"ring: epoch 2  {URL}" in text


def test_markup_in_a_members_message_is_shown_as_it_is() -> None:
    text = drawn(Snapshot("tiny", members=(replace(STAGE, state="failed", detail="[bold]no[/] such thing"),)))
    assert "[bold]no[/] such thing" in text


def test_a_stream_that_is_no_terminal_gets_lines_and_a_terminal_a_table() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(display_on(io.StringIO()), LineDisplay)
    assert isinstance(display_on(Terminal()), TableDisplay)


class _Running:
    pid = 77


def member(name: str, **fields: object) -> Member:
    return Member(Command(name, (), {}, Path(), Path()), **fields)  # type: ignore[arg-type]


def test_a_pipe_is_ready_only_when_every_member_process_is() -> None:
    ready = replace(STAGE, state="ready")
    store = MemberView(name="store", work="", state="starting")
    assert Snapshot("tiny", members=(store, ready, END)).ready  # a ring that runs needs no store
    assert not Snapshot("tiny", members=(store, STAGE, END)).ready
    assert not Snapshot("tiny", members=(store,)).ready
    assert not Snapshot("tiny").ready


def test_a_member_that_answered_and_falls_silent_is_not_taken_for_one_that_starts() -> None:
    members = {"gpu": member("gpu", process=_Running())}

    def state(heard: dict[str, tuple[int, MemberStatus]]) -> str:
        return take("tiny", members, {}, Observation({"gpu": None}), heard=heard, now=0.0).members[0].state

    assert state({}) == "starting"
    assert state({"gpu": (77, MemberStatus(state="loading"))}) == "loading"
    assert state({"gpu": (77, MemberStatus(state="ready"))}) == "silent"
    assert state({"gpu": (76, MemberStatus(state="ready"))}) == "starting"


def test_a_member_between_two_lives_says_why_it_died_and_when_it_comes_back() -> None:
    death = Death("gpu", -9, 4.2, None, (), 8.0)
    members = {"gpu": member("gpu", last_death=death, restart_at=10.0, restarts=3)}
    view = take("tiny", members, {"gpu": "layers 1-20"}, Observation({"gpu": None}), heard={}, now=7.0).members[0]
    assert view.state == "restarting"
    assert view.detail == "killed by SIGKILL after 4.2 s, starts again in 3 s"
    assert view.restarts == 3


def test_a_member_that_is_given_up_has_failed_and_says_how_it_ended() -> None:
    members = {"gpu": member("gpu", last_death=Death("gpu", 1, 4.2, None, (), None), restarts=5)}
    now = take("tiny", members, {}, Observation({"gpu": None}), heard={}, now=7.0)
    assert changes(None, now) == ["gpu: failed (ended with status 1 after 4.2 s) [restarts: 5]"]


def test_an_end_model_without_a_ring_is_not_ready_and_says_why() -> None:
    members = {"gpu": member("gpu", process=_Running()), "end-model": member("end-model", process=_Running())}
    reports = {
        "gpu": MemberStatus(state="ready"),
        "end-model": MemberStatus(state="ready", ring_ready=False, ring_error="stage 1 refuses: plan hash"),
    }
    now = take("tiny", members, {}, Observation(reports), heard={}, now=0.0)
    assert not now.ready
    assert "end-model: joining (stage 1 refuses: plan hash)" in changes(None, now)


def test_the_epoch_is_the_end_models() -> None:
    members = {name: member(name, process=_Running()) for name in ("gpu", "end-model")}
    reports = {"gpu": MemberStatus(state="ready", epoch=9), "end-model": MemberStatus(state="ready", epoch=4)}
    assert take("tiny", members, {}, Observation(reports), heard={}, now=0.0).epoch == 4
