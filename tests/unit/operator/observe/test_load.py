"""Requests are counted where they are, remembered as long as asked for, and reported only where the number changes."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_PIPE, LABEL_ROLE
from languagepipes_operator.decide.autoscaling import desired_replicas
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.observe import load as load_module
from languagepipes_operator.observe.load import LoadProbe, _Watched, autoscaling_of
from languagepipes_operator.observe.pipes import Pipes

PIPE = ObjectKey("models", "smol")
NOW = datetime(2026, 11, 24, tzinfo=UTC)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def says(running: int, waiting: int = 0) -> MemberStatus:
    return MemberStatus(state="ready", running=running, waiting=waiting)


def pipe(desired: int | None = 1, **limits: Any) -> dict[str, Any]:
    status = {} if desired is None else {"desiredReplicas": desired}
    limits = {"maxReplicas": 4, "scaleDownDelaySeconds": 0, **limits}
    metadata = {"namespace": "models", "name": "smol", "uid": "p"}
    return {"metadata": metadata, "spec": {"autoscaling": limits}, "status": status}


def end_model(uid: str, *, ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": uid, "uid": uid, "labels": {LABEL_PIPE: "smol", LABEL_ROLE: "end-model"}},
        "status": {
            "phase": "Running",
            "podIP": uid,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


class Scene:
    """A probe with ticks of a hundredth of a second."""

    def __init__(self, raw: dict[str, Any], *uids: str) -> None:
        self.raw = raw
        self.pods = [end_model(uid) for uid in uids]
        self.says: dict[str, MemberStatus | None] = {}
        self.questions = 0
        self.changed: list[ObjectKey] = []
        self.probe = LoadProbe(
            self._answer,
            Pipes({PIPE: [self.raw]}, lambda key: None),
            lambda _: self.pods,
            desired_replicas,
            self.changed.append,
        )

    async def _answer(self, host: str) -> MemberStatus | None:
        self.questions += 1
        return self.says.get(host)

    def desired(self) -> int | None:
        return self.probe.desired(self.raw, existing=1, now=datetime.now(UTC))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.002)

    async def asked(self, times: int) -> None:
        before = self.questions
        await self.until(lambda: self.questions >= before + times)

    @asynccontextmanager
    async def running(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        monkeypatch.setattr(load_module, "TICK_SECONDS", 0.01)
        task = asyncio.create_task(self.probe.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


@in_a_loop
async def test_requests_of_all_end_models_count_together_and_a_changed_number_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(pipe(1), "a", "b")
    scene.says = {"a": says(3, 2), "b": says(2, 0)}
    async with scene.running(monkeypatch):
        await scene.asked(6)
        assert scene.desired() == 1
        assert scene.changed == []

        scene.says["b"] = says(2, 2)
        await scene.until(lambda: bool(scene.changed))
        assert scene.desired() == 2


@in_a_loop
async def test_who_is_silent_counts_as_it_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(pipe(2), "a")
    scene.says["a"] = says(16)
    async with scene.running(monkeypatch):
        await scene.asked(3)
        scene.says["a"] = None
        await scene.asked(8)
        assert scene.desired() == 2
        assert not scene.probe.is_silent(PIPE)


@in_a_loop
async def test_who_never_answered_keeps_the_number_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(pipe(3), "a", "b")
    scene.says["a"] = says(0)
    async with scene.running(monkeypatch):
        await scene.until(lambda: scene.probe.is_silent(PIPE))
        assert scene.changed[0] == PIPE
        assert scene.desired() == 3


@in_a_loop
async def test_a_paused_pipe_keeps_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(pipe(1), "a")
    scene.raw["spec"]["paused"] = True
    scene.says["a"] = says(99)
    async with scene.running(monkeypatch):
        await scene.asked(3)
        assert scene.desired() == 1
        assert scene.changed == []


@in_a_loop
async def test_nobody_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene({"metadata": pipe()["metadata"], "spec": {}}, "a")
    async with scene.running(monkeypatch):
        await asyncio.sleep(0.05)
    assert scene.questions == 0
    assert scene.desired() is None


def test_the_highest_number_of_the_delay_counts_and_then_is_forgotten() -> None:
    limits = autoscaling_of(pipe(scaleDownDelaySeconds=60))
    assert limits is not None
    watched = _Watched("p", NOW)
    for second, requests in ((0, 5), (10, 20), (20, 7), (30, 9), (40, 1)):
        watched.note(requests, NOW + timedelta(seconds=second))

    def highest(second: int) -> int:
        found = watched.load(limits, NOW + timedelta(seconds=second))
        assert found is not None
        return found.highest_requests

    assert [highest(second) for second in (40, 70, 71, 90, 91, 500)] == [20, 20, 9, 9, 1, 1]
