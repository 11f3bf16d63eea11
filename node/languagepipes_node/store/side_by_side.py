"""Works on several items at once, in threads that hold up no process that ends. Knows nothing of files."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def side_by_side(
    work: Callable[[Item], None], items: Iterable[Item], *, threads: int, giving_up: threading.Event
) -> None:
    """Call `work` for every item, begun in their order, at most `threads` at once. Returns when all are done.

    The first error is raised at once, after `giving_up` is set: no further item is begun, and what is under way
    is to look at it.
    """
    waiting = deque(items)
    ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            while waiting and not giving_up.is_set():
                try:
                    item = waiting.popleft()
                except IndexError:  # another thread took the last one
                    break
                work(item)
        except BaseException as error:
            ends.put(error)
        else:
            ends.put(None)

    started = min(threads, len(waiting))
    for number in range(started):
        threading.Thread(target=run, name=f"side-by-side-{number}", daemon=True).start()
    for _ in range(started):
        if (error := ends.get()) is not None:
            giving_up.set()
            raise error
