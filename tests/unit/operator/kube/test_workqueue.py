"""Keys wait once, are worked on by one worker at a time, and back off on their own."""

from __future__ import annotations

import asyncio

from languagepipes_operator.kube.workqueue import WorkQueue


def test_a_key_that_is_added_often_is_worked_on_once_and_once_more_if_it_changed_meanwhile() -> None:
    async def scene() -> list[str]:
        done: list[str] = []
        at_once = 0

        async def work(key: str) -> float | None:
            nonlocal at_once
            at_once += 1
            assert at_once == 1
            await asyncio.sleep(0.01)
            if not done:
                queue.add("a")
                queue.add("a")
            await asyncio.sleep(0.01)  # time in which another worker would begin it
            at_once -= 1
            done.append(key)
            return None

        queue: WorkQueue[str] = WorkQueue(work)
        for _ in range(5):
            queue.add("a")
        running = asyncio.create_task(queue.run(2))
        async with asyncio.timeout(20):
            while not queue.idle:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # nothing comes after that
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return done

    assert asyncio.run(scene()) == ["a", "a"]


def test_a_failing_key_backs_off_and_holds_up_no_other() -> None:
    async def scene() -> tuple[list[float], list[str]]:
        delays: list[float] = []
        done: list[str] = []

        async def work(key: str) -> float | None:
            if key == "bad":
                raise ValueError(key)
            done.append(key)
            return 0.05

        queue: WorkQueue[str] = WorkQueue(
            work, first_delay_seconds=0.01, on_failure=lambda key, error, seconds: delays.append(seconds)
        )
        queue.add("bad")
        queue.add("good")
        running = asyncio.create_task(queue.run(2))
        async with asyncio.timeout(20):
            while len(done) < 5 or len(delays) < 5:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return delays, done

    delays, done = asyncio.run(scene())
    assert set(done) == {"good"}  # comes back as it asked
    assert delays == sorted(delays)
    assert delays[4] > 4 * delays[0]


def test_slow_keys_hold_up_each_other_and_no_other_key_however_many_they_are() -> None:
    async def scene() -> tuple[list[str], list[str]]:
        hangs, began, done = False, [], []
        slow = [f"slow-{number}" for number in range(20)]

        async def work(key: str) -> float | None:
            if key in slow:
                began.append(key)
                # Once each, a little; and then for ever.
                await (asyncio.Event().wait() if hangs else asyncio.sleep(0.02))
            else:
                done.append(key)
            return None

        queue: WorkQueue[str] = WorkQueue(work, slow_seconds=0.01)
        running = asyncio.create_task(queue.run(2))
        for key in slow:
            queue.add(key)
        while not queue.idle:
            await asyncio.sleep(0.01)
        hangs = True
        began.clear()
        for key in [*slow, "good", "another"]:
            queue.add(key)
        async with asyncio.timeout(10):
            while len(done) < 2:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return began, done

    began, done = asyncio.run(scene())
    assert len(began) == 1
    assert done == ["good", "another"]


def test_a_key_that_is_quick_again_is_a_key_like_any_other() -> None:
    async def scene() -> int:
        seconds, at_once, most = 0.02, 0, 0

        async def work(key: str) -> float | None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(seconds)
            at_once -= 1
            return None

        async def through() -> None:
            for key in "abcd":
                queue.add(key)
            while not queue.idle:
                await asyncio.sleep(0.005)

        queue: WorkQueue[str] = WorkQueue(work, slow_seconds=0.01)
        running = asyncio.create_task(queue.run(3))
        await through()  # slow
        queue._slow_seconds = 10.0
        await through()  # quick, and still with the workers for slow keys
        most = 0
        await through()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return most

    assert asyncio.run(scene()) == 3
