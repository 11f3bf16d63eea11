"""What `up` knows at one moment, as a value: made from processes and answers, shown by `display`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.store_answers import StoreProgress

from languagepipes_operator.cli.up.observe import Observation
from languagepipes_operator.cli.up.processes import Member

MemberState = Literal["starting", "waiting", "loading", "joining", "ready", "failed", "silent", "restarting"]
_SAID: dict[str, MemberState] = {
    "starting": "starting",
    "waiting": "waiting",
    "loading": "loading",
    "ready": "ready",
    "failed": "failed",
}


@dataclass(frozen=True)
class MemberView:
    """One member for people. work: what it runs ("layers 1-9"). detail: why it is in that state, or "".

    loaded_bytes of total_bytes are its weights; 0 of 0 where it has none or has not said so yet.
    """

    name: str
    work: str
    state: MemberState
    detail: str = ""
    pid: int | None = None
    restarts: int = 0
    loaded_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything on display. store is None until it first answers, epoch until a ring health check passed."""

    pipe: str
    members: tuple[MemberView, ...] = ()
    store: StoreProgress | None = None
    epoch: int | None = None
    url: str | None = None

    @property
    def ready(self) -> bool:
        """Whether every member is ready and the ring health check passed. (A ring that runs needs no store.)"""
        member_processes = [member for member in self.members if member.name != STORE]
        return bool(member_processes) and all(member.state == "ready" for member in member_processes)


STORE = "store"
END_MODEL = "end-model"


def take(
    pipe: str,
    members: Mapping[str, Member],
    work: Mapping[str, str],
    observation: Observation,
    *,
    heard: Mapping[str, tuple[int, MemberStatus]],
    now: float,
    url: str | None = None,
) -> Snapshot:
    """heard: what each member said last, and its pid then; a busy member may answer late.

    now: by the supervisor's clock, in seconds.
    """
    views = tuple(
        _member_view(
            member,
            observation.members.get(name),
            work=work.get(name, ""),
            heard=heard.get(name),
            now=now,
        )
        for name, member in members.items()
    )
    end_model = observation.members.get(END_MODEL)
    return Snapshot(
        pipe=pipe,
        members=views,
        store=observation.progress,
        epoch=None if end_model is None or not end_model.epoch else end_model.epoch,
        url=url,
    )


def _member_view(
    member: Member,
    report: MemberStatus | None,
    *,
    work: str,
    heard: tuple[int, MemberStatus] | None,
    now: float,
) -> MemberView:
    state: MemberState
    said = heard[1] if report is None and heard is not None and heard[0] == member.pid else report
    if member.given_up:
        state, detail = "failed", str(member.last_death)
    elif member.process is None:
        wait = max(0.0, member.restart_at - now)
        state, detail = (
            "restarting",
            f"in {wait:.0f} s" if member.last_death is None else str(member.last_death),
        )
        if member.last_death is not None:
            detail += f", starts again in {wait:.0f} s"
    elif said is None:
        state, detail = "starting", ""
    elif said.state == "ready" and not said.ring_ready:
        state, detail = "joining", said.ring_error
    elif report is None and said.state == "ready":
        state, detail = "silent", "does not answer"
    else:
        # Importing torch and loading can keep a member from answering: what it said last still holds.
        state, detail = _SAID.get(said.state, "starting"), said.message
    return MemberView(
        name=member.name,
        work=work,
        state=state,
        detail=detail,
        pid=member.pid,
        restarts=max(0, member.restarts),
        loaded_bytes=0 if said is None else said.loaded_bytes,
        total_bytes=0 if said is None else said.total_bytes,
    )
