"""Who leads, and when: candidates against an API server that is played in a thread of its own, so that it answers one
candidate while another one's event loop hangs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from languagepipes_operator.kube.client import connect
from languagepipes_operator.kube.leader_election import Leadership, Timing
from languagepipes_operator.metrics import Metrics
from support.waiting import eventually

# Long beside what an answer takes, short beside a test.
TIMING = Timing(lease=3.0, stop=2.4, retry=0.2)


class LeaseServer:
    """Keeps one Lease as the API server does. before_write: called with each write before it counts."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.written: list[dict[str, Any]] = []
        self.before_write: Callable[[dict[str, Any]], None] = lambda spec: None
        self._version = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, self.url = self.run(self._start()).result(10)

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        self.run(self._runner.cleanup()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def holder(self) -> str:
        return "" if self.lease is None else str(self.lease["spec"]["holderIdentity"])

    def touch(self) -> None:
        """Another version of the same Lease, as a write that nobody waited for leaves it."""
        assert self.lease is not None
        self._version += 1
        self.lease["metadata"]["resourceVersion"] = str(self._version)

    async def _start(self) -> tuple[web.AppRunner, str]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, "http://{}:{}".format(*runner.addresses[0][:2])

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            if self.lease is None:
                return web.json_response({"kind": "Status", "code": 404}, status=404)
            return web.json_response(self.lease)
        sent = await request.json()
        self.before_write(sent["spec"])
        expected = None if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if sent["metadata"].get("resourceVersion") != expected:
            return web.json_response({"kind": "Status", "code": 409, "reason": "Conflict"}, status=409)
        self._version += 1
        sent["metadata"]["resourceVersion"] = str(self._version)
        self.lease = sent
        self.written.append(sent["spec"])
        return web.json_response(sent)


@pytest.fixture
def server() -> Iterator[LeaseServer]:
    made = LeaseServer()
    yield made
    made.close()


async def candidate(
    server: LeaseServer,
    identity: str,
    act: Callable[[Leadership], Awaitable[None]],
    scene: Callable[[Leadership], Awaitable[None]],
) -> None:
    """One that runs for the Lease in this event loop while `scene` lasts, and is then told to end."""
    async with connect(Metrics(), Configuration(host=server.url)) as kube:
        leadership = Leadership(kube, namespace="n", name="lease", identity=identity, timing=TIMING)
        running = asyncio.create_task(leadership.run(lambda: act(leadership)))
        try:
            await scene(leadership)
        finally:
            running.cancel()
            await asyncio.wait([running])


async def led(leadership: Leadership) -> None:
    async with asyncio.timeout(20):
        while not leadership.leads:
            await asyncio.sleep(0.02)


async def for_ever(_: Leadership) -> None:
    await asyncio.Event().wait()


def test_the_lease_is_given_back_only_once_all_work_has_ended(server: LeaseServer) -> None:
    seen: list[tuple[str, str]] = []

    async def act(leadership: Leadership) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(("stopping", server.holder))
            await asyncio.sleep(0.3)
            seen.append(("stopped", server.holder))

    asyncio.run(candidate(server, "one", act, led))

    assert seen == [("stopping", "one"), ("stopped", "one")]
    assert server.holder == ""
    # As client-go leaves it: a duration of 0 would be refused.
    assert server.written[-1]["leaseDurationSeconds"] == 1


def test_a_renewal_that_arrives_while_the_lease_is_given_back_does_not_keep_it(server: LeaseServer) -> None:
    late = [1]

    def arrives(spec: dict[str, Any]) -> None:
        if spec["holderIdentity"] == "" and late:
            late.pop()
            server.touch()

    server.before_write = arrives

    asyncio.run(candidate(server, "one", for_ever, led))

    assert late == []
    assert server.holder == ""


def test_a_lease_whose_taking_was_written_and_not_answered_is_given_back_too(server: LeaseServer) -> None:
    written = threading.Event()

    async def scene(leadership: Leadership) -> None:
        async with asyncio.timeout(20):
            while not written.is_set():
                await asyncio.sleep(0.005)
        assert not leadership.leads

    def silent(spec: dict[str, Any]) -> None:
        if spec["holderIdentity"] == "one" and not written.is_set():
            # The write counts, and its answer comes when the candidate was told to end.
            server.lease = {"metadata": {"name": "lease", "namespace": "n", "resourceVersion": "x"}, "spec": spec}
            written.set()
            time.sleep(0.5)

    server.before_write = silent

    asyncio.run(candidate(server, "one", for_ever, scene))

    assert server.holder == ""


def test_a_lease_that_another_holds_by_now_is_left_alone(server: LeaseServer) -> None:
    async def scene(leadership: Leadership) -> None:
        await led(leadership)
        assert server.lease is not None
        server.lease["spec"]["holderIdentity"] = "two"
        server.touch()

    asyncio.run(candidate(server, "one", for_ever, scene))

    assert server.holder == "two"


@pytest.mark.parametrize(("blocked_seconds", "keeps"), [(1.2, True), (4.5, False)])
def test_an_event_loop_that_hangs_keeps_the_lease_for_a_while_and_then_writes_nothing(
    server: LeaseServer, blocked_seconds: float, keeps: bool
) -> None:
    """Two candidates, each with an event loop of its own. Renewals are tasks of the loop, so one that hangs for longer
    than the lease loses it: then the other leads, and the first finds so by the clock, before it writes anything.
    """
    ended = threading.Event()
    led_by_other = threading.Event()

    async def until_ended(leadership: Leadership) -> None:
        while not ended.is_set():
            if leadership.leads:
                led_by_other.set()
            await asyncio.sleep(0.02)

    async def hang(leadership: Leadership) -> None:
        await led(leadership)
        other.start()
        await asyncio.sleep(0.5)
        time.sleep(blocked_seconds)
        assert leadership.leads is keeps
        assert led_by_other.is_set() is not keeps
        ended.set()

    other = threading.Thread(target=lambda: asyncio.run(candidate(server, "two", for_ever, until_ended)))
    try:
        asyncio.run(candidate(server, "one", for_ever, hang))
    finally:
        ended.set()
        other.join(20)
    eventually(lambda: server.holder == "", seconds=10)
