"""A ring that is down under Ready pods is noticed, and so is its return; who does not answer is no news."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_PIPE, LABEL_ROLE
from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe import ring_probe
from languagepipes_operator.observe.ring_probe import PERIOD_TICKS, RingProbe

UP = MemberStatus(state="ready", ring_ready=True)
DOWN = MemberStatus(state="ready", ring_ready=False, ring_error="stage 2 does not answer", recovering=True)
LOADING = MemberStatus(state="loading", ring_ready=False)
PIPE = ObjectKey("models", "smol")


def end_model(uid: str = "u1", *, ready: bool = True, role: str = "end-model", **metadata: Any) -> dict[str, Any]:
    labels = {LABEL_PIPE: "smol", LABEL_ROLE: role}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": uid, "namespace": "models", "uid": uid, "labels": labels, **metadata},
        "status": {"phase": "Running", "podIP": f"ip-of-{uid}", "conditions": conditions},
    }


class Scene:
    """A probe that runs ticks of a hundredth of a second, End Models that answer what `says` has for their address."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self.pods = list(pods)
        self.says: dict[str, MemberStatus | None] = {}
        self.asked: Counter[str] = Counter()
        self.changed: list[ObjectKey] = []
        self.metrics = Metrics()
        self.probe = RingProbe(self.metrics, self._answer, lambda: self.pods, self.changed.append)

    async def _answer(self, host: str) -> MemberStatus | None:
        self.asked[host] += 1
        await asyncio.sleep(0)
        return self.says.get(host, UP)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.002)

    async def asked_on(self, times: int = 2) -> None:
        """Until each that is asked at all was asked so often again."""
        before, expected = Counter(self.asked), set(self.asked)
        await self.until(lambda: all(self.asked[host] >= before[host] + times for host in expected))

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"languagepipes_operator_{name}", labels) or 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.probe.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_probe, "TICK_SECONDS", 0.01)


def test_a_ring_that_goes_down_is_told_of_once_and_so_is_its_return() -> None:
    async def scene() -> None:
        world = Scene(end_model())
        async with world.running():
            await world.until(lambda: world.asked["ip-of-u1"] >= 2)
            assert (world.changed, dict(world.probe.down)) == ([], {})
            world.says["ip-of-u1"] = DOWN
            await world.until(lambda: bool(world.changed))
            assert world.probe.down == {"u1": DOWN}
            await world.asked_on()
            assert world.changed == [PIPE]
            assert world.sample("rings_down") == 1
            world.says["ip-of-u1"] = UP
            await world.until(lambda: len(world.changed) == 2)
            await world.asked_on()
            assert (world.changed, dict(world.probe.down), world.sample("rings_down")) == ([PIPE, PIPE], {}, 0)
            assert world.sample("ring_questions_total", outcome="answered") == world.asked["ip-of-u1"]

    asyncio.run(scene())


def test_a_ring_that_is_up_again_at_the_next_question_is_no_news() -> None:
    async def scene() -> None:
        world = Scene(end_model())
        answers = iter([UP, DOWN, UP, UP, DOWN, UP])

        async def answer(host: str) -> MemberStatus | None:
            world.asked[host] += 1
            return next(answers, UP)

        world.probe = RingProbe(world.metrics, answer, lambda: world.pods, world.changed.append)
        async with world.running():
            await world.until(lambda: world.asked["ip-of-u1"] >= 8)
            assert (world.changed, dict(world.probe.down)) == ([], {})

    asyncio.run(scene())


def test_a_suspected_ring_is_asked_about_again_at_the_next_tick_and_a_good_one_once_a_period() -> None:
    async def scene() -> None:
        world = Scene(*(end_model(f"u{number}") for number in range(40)))
        world.says["ip-of-u0"] = DOWN
        looks = 0

        def pods() -> list[dict[str, Any]]:
            nonlocal looks
            looks += 1
            return world.pods

        world.probe = RingProbe(world.metrics, world._answer, pods, world.changed.append)
        async with world.running():
            await world.until(lambda: looks > 4 * PERIOD_TICKS)
            seen, asked = looks, Counter(world.asked)
        good = [asked[f"ip-of-u{number}"] for number in range(1, 40)]
        assert all(seen / PERIOD_TICKS - 2 <= times <= seen / PERIOD_TICKS + 1 for times in good)
        assert asked["ip-of-u0"] >= seen - PERIOD_TICKS - 1

    asyncio.run(scene())


def test_questions_of_many_pipes_spread_over_the_period() -> None:
    async def scene() -> None:
        world = Scene(*(end_model(f"{number:032x}") for number in range(500)))
        by_tick: list[int] = []

        def pods() -> list[dict[str, Any]]:
            by_tick.append(world.asked.total())
            return world.pods

        world.probe = RingProbe(world.metrics, world._answer, pods, world.changed.append)
        async with world.running():
            await world.until(lambda: len(by_tick) > PERIOD_TICKS)
        at_once = [after - before for before, after in pairwise(by_tick)]
        assert sum(at_once[:PERIOD_TICKS]) == 500
        assert max(at_once[:PERIOD_TICKS]) < 200

    asyncio.run(scene())


def test_only_end_models_that_are_ready_and_stay_are_asked() -> None:
    async def scene() -> None:
        world = Scene(
            end_model("asked"),
            end_model("unready", ready=False),
            end_model("stage", role="stage"),
            end_model("ending", deletionTimestamp="2026-11-24T00:00:00Z"),
        )
        async with world.running():
            await world.until(lambda: world.asked["ip-of-asked"] >= 3)
        assert set(world.asked) == {"ip-of-asked"}

    asyncio.run(scene())


@pytest.mark.parametrize("answer", [None, LOADING], ids=["silent", "loads"])
def test_an_end_model_that_does_not_answer_or_loads_is_no_news(answer: MemberStatus | None) -> None:
    async def scene() -> None:
        world = Scene(end_model())
        world.says["ip-of-u1"] = answer
        async with world.running():
            await world.until(lambda: world.asked["ip-of-u1"] >= 4)
            assert (world.changed, dict(world.probe.down)) == ([], {})
        assert world.sample("ring_questions_total", outcome="silent") == (0 if answer else world.asked["ip-of-u1"])

    asyncio.run(scene())


def test_a_ring_that_was_down_stays_so_while_its_end_model_is_silent_and_is_forgotten_with_its_pod() -> None:
    async def scene() -> None:
        world = Scene(end_model())
        world.says["ip-of-u1"] = DOWN
        async with world.running():
            await world.until(lambda: bool(world.probe.down))
            world.says["ip-of-u1"] = None
            await world.asked_on(4)
            assert world.probe.down == {"u1": DOWN}
            world.pods.clear()
            await world.until(lambda: not world.probe.down)
            assert world.changed == [PIPE]  # its pod's own end is seen by the watch

    asyncio.run(scene())


def test_what_a_reconcile_heard_counts_at_once_and_is_asked_on_until_it_is_over() -> None:
    async def scene() -> None:
        world = Scene(end_model())
        world.probe.note(world.pods[0], DOWN)
        assert world.probe.down == {"u1": DOWN}
        world.says["ip-of-u1"] = UP
        async with world.running():
            await world.until(lambda: world.changed == [PIPE])
            assert dict(world.probe.down) == {}
        world.probe.note(world.pods[0], DOWN)
        world.probe.note(world.pods[0], None)
        assert world.probe.down == {"u1": DOWN}
        world.probe.note(world.pods[0], UP)
        assert dict(world.probe.down) == {}

    asyncio.run(scene())


def test_an_operator_that_leads_no_more_knows_of_no_ring() -> None:
    async def scene() -> None:
        world = Scene(end_model())
        world.says["ip-of-u1"] = DOWN
        async with world.running():
            await world.until(lambda: bool(world.probe.down))
        assert (dict(world.probe.down), world.sample("rings_down")) == ({}, 0)

    asyncio.run(scene())


def test_a_ring_that_was_down_is_asked_about_until_it_is_up_although_its_pod_is_not_ready() -> None:
    async def scene() -> None:
        world = Scene(end_model())
        world.says["ip-of-u1"] = DOWN
        async with world.running():
            await world.until(lambda: bool(world.probe.down))
            world.pods[:] = [end_model(ready=False)]
            await world.asked_on(5)
            assert world.probe.down == {"u1": DOWN}
            world.says["ip-of-u1"] = UP
            await world.until(lambda: not world.probe.down)
            assert world.changed == [PIPE, PIPE]

    asyncio.run(scene())


def test_what_an_end_model_that_is_not_ready_answers_to_others_counts_if_requests_wait_there() -> None:
    world = Scene()
    starts = MemberStatus(state="ready", ring_ready=False, ring_error="the ring has not been joined yet")
    world.probe.note(end_model(ready=False), starts)
    assert world.probe.down == {}
    world.probe.note(end_model(ready=False), DOWN)
    assert world.probe.down == {"u1": DOWN}
