"""A node that falls silent is told of within seconds, and so is its return; one that never answered is no news."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe import node_probe as reachability
from languagepipes_operator.observe.node_probe import Reachability
from support.ports import free_port

_BACKLOG = 64  # room for every question of a test, none of which is accepted


class Node:
    """A listener that can be made as silent as a node that is cut off: Linux drops what finds the backlog full."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self._listener = socket.create_server((host, port), backlog=_BACKLOG)
        self._fillers: list[socket.socket] = []

    def silence(self) -> None:
        for _ in range(_BACKLOG + 8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())
            self._fillers.append(filler)

    def speak(self) -> None:
        """By a refusal, as of a node whose member has ended."""
        self.close()

    def close(self) -> None:
        self._listener.close()
        for filler in self._fillers:
            filler.close()


@contextlib.contextmanager
def nodes(count: int) -> Iterator[tuple[int, list[Node]]]:
    port = free_port()
    made = [Node(f"127.0.7.{number}", port) for number in range(1, count + 1)]
    try:
        yield port, made
    finally:
        for node in made:
            node.close()


def pod(name: str, node: str, host: str, **metadata: Any) -> dict[str, Any]:
    running = {"name": "c", "state": {"running": {"startedAt": "2026-11-24T00:00:00Z"}}}
    status = {"phase": "Running", "podIP": host, "containerStatuses": [running]}
    return {"metadata": {"name": name, **metadata}, "spec": {"nodeName": node}, "status": status}


async def until(found: Reachability, lost: set[str], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while found.lost != lost:
            await asyncio.sleep(0.05)


def watched(found: Reachability) -> contextlib.AbstractAsyncContextManager[None]:
    @contextlib.asynccontextmanager
    async def run() -> Any:
        task = asyncio.create_task(found.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return run()


def test_a_node_that_falls_silent_is_told_of_and_so_is_its_return() -> None:
    async def scene() -> None:
        with nodes(2) as (port, (silent, other)):
            pods = [pod("a", "silent", silent.host), pod("b", "other", other.host)]
            close_reason: list[str] = []
            metrics = Metrics()
            found = Reachability(metrics, lambda: pods, close_reason.append, port=port)
            async with watched(found):
                await asyncio.sleep(0.5)
                assert found.lost == frozenset()
                silent.silence()
                await until(found, {"silent"}, 10)
                assert close_reason == ["silent"]
                assert metrics.registry.get_sample_value("languagepipes_operator_lost_nodes") == 1
                silent.speak()
                await until(found, set(), 10)
                assert close_reason == ["silent", "silent"]
                assert metrics.registry.get_sample_value("languagepipes_operator_lost_nodes") == 0

    asyncio.run(scene())


def test_nodes_that_never_answered_and_pods_that_end_or_have_no_address_are_no_news() -> None:
    async def scene() -> None:
        with nodes(1) as (port, (silent,)):
            silent.silence()
            ending = pod("b", "n2", silent.host, deletionTimestamp="2026-11-24T00:00:00Z")
            pods = [pod("a", "n1", silent.host), ending, pod("c", "n3", "")]
            found = Reachability(Metrics(), lambda: pods, lambda node: None, port=port)
            async with watched(found):
                await asyncio.sleep(2 * reachability.PERIOD_SECONDS + 4)
                assert found.lost == frozenset()

    asyncio.run(scene())


def test_a_node_is_not_lost_while_another_of_its_pods_answers() -> None:
    async def scene() -> None:
        with nodes(2) as (port, (silent, other)):
            pods = [pod("a", "node", silent.host), pod("b", "node", other.host)]
            found = Reachability(Metrics(), lambda: pods, lambda node: None, port=port)
            async with watched(found):
                await asyncio.sleep(0.5)
                silent.silence()
                await asyncio.sleep(reachability.PERIOD_SECONDS + 3)
                assert found.lost == frozenset()

    asyncio.run(scene())


def test_an_operator_that_is_cut_off_itself_accuses_nobody() -> None:
    async def scene() -> None:
        with nodes(2) as (port, both):
            pods = [pod(node.host, node.host, node.host) for node in both]
            found = Reachability(Metrics(), lambda: pods, lambda node: None, port=port)
            async with watched(found):
                await asyncio.sleep(0.5)
                for node in both:
                    node.silence()
                await asyncio.sleep(reachability.PERIOD_SECONDS + 4)
                assert found.lost == frozenset()

    asyncio.run(scene())
