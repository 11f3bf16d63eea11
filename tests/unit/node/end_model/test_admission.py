"""Work beside the event loop is done in turns between clients, and seats are counted from before it begins."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import pytest
from languagepipes_node.end_model.openai.admission import FairWorkers, client_id
from languagepipes_node.end_model.openai.bridge import EngineBridge, EngineGone, TooManySequences

SECONDS = 20


class Work:
    """Jobs that say when they begin, and do not end before they are told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ends: dict[str, threading.Event] = {}

    def job(self, name: str) -> Callable[[], str]:
        self.ends[name] = threading.Event()

        def run() -> str:
            self.begun.append(name)
            assert self.ends[name].wait(SECONDS)
            return name

        return run

    def end_all(self) -> None:
        for end in self.ends.values():
            end.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


def test_one_clients_jobs_leave_a_thread_for_everybody_else() -> None:
    async def scenario() -> None:
        workers, work = FairWorkers(threads=2), Work()
        try:
            many = [asyncio.ensure_future(workers.run("a", work.job(f"a{place}"))) for place in range(5)]
            await until(lambda: work.begun == ["a0"])
            other = asyncio.ensure_future(workers.run("b", work.job("b")))
            await until(lambda: work.begun == ["a0", "b"])
            work.ends["b"].set()
            assert await other == "b"
            assert work.begun == ["a0", "b"]  # a thread is free again, and none of the client's other jobs takes it
            work.end_all()
            assert await asyncio.gather(*many) == [f"a{place}" for place in range(5)]
        finally:
            work.end_all()

    asyncio.run(scenario())


def test_clients_take_turns_whatever_the_number_of_their_jobs() -> None:
    async def scenario() -> None:
        workers, work = FairWorkers(threads=1), Work()
        try:
            first = asyncio.ensure_future(workers.run("a", work.job("a0")))
            await until(lambda: work.begun == ["a0"])
            jobs = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("c", "c1")]
            waiting = [asyncio.ensure_future(workers.run(client, work.job(name))) for client, name in jobs]
            await until(lambda: workers.waiting == len(jobs))
            work.end_all()
            await asyncio.gather(first, *waiting)
        finally:
            work.end_all()
        assert work.begun == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]

    asyncio.run(scenario())


def test_a_job_that_nobody_waits_for_is_not_begun_and_an_error_is_its_own_jobs() -> None:
    async def scenario() -> None:
        workers, work = FairWorkers(threads=1), Work()
        try:
            first = asyncio.ensure_future(workers.run("a", work.job("a0")))
            await until(lambda: work.begun == ["a0"])
            left = [asyncio.ensure_future(workers.run(client, work.job("left"))) for client in "ab"]
            await until(lambda: workers.waiting == 2)
            for task in left:
                task.cancel()
            await asyncio.wait(left)
            assert workers.waiting == 0
            failing = asyncio.ensure_future(workers.run("b", lambda: 1 // 0))
            work.end_all()
            assert await first == "a0"
            with pytest.raises(ZeroDivisionError):
                await failing
            assert await workers.run("a", lambda: 3) == 3
        finally:
            work.end_all()
        assert work.begun == ["a0"]

    asyncio.run(scenario())


def test_reserved_seats_count_until_they_are_given_back() -> None:
    bridge = EngineBridge(max_sequences=3)
    with bridge.reserve(2) as seats:
        assert bridge.open_sequences == 2
        with pytest.raises(TooManySequences):
            bridge.reserve(2)
        with bridge.reserve(1):
            assert bridge.open_sequences == 3
        seats.release()
        assert bridge.open_sequences == 0
    assert bridge.open_sequences == 0
    bridge.engine_gone("it ended")
    with pytest.raises(EngineGone, match="it ended"), contextlib.ExitStack() as stack:
        stack.enter_context(bridge.reserve(1))


def test_a_client_is_its_key_or_else_its_address_and_neither_can_be_read_from_its_id() -> None:
    here, there = {"client": ("10.0.0.1", 5)}, {"client": ("10.0.0.2", 5)}
    assert client_id(here, None) == client_id({"client": ("10.0.0.1", 6)}, None) != client_id(there, None)
    assert client_id(here, b"one") == client_id(there, b"one") != client_id(here, b"two")
    assert client_id({"client": None}, None) == client_id({}, None)
    assert "10.0.0.1" not in client_id(here, None)
    assert "one" not in client_id(here, b"one")
