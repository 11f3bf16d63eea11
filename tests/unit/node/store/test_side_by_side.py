"""Items are worked on by a few threads; the first error ends all of it."""

from __future__ import annotations

import threading

import pytest
from languagepipes_node.store.side_by_side import side_by_side


def test_all_items_are_done_and_no_more_at_once_than_asked() -> None:
    done: list[int] = []
    running, most = 0, 0
    lock, both = threading.Lock(), threading.Barrier(2)

    def work(item: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(timeout=20)
        with lock:
            running -= 1
        done.append(item)

    side_by_side(work, range(6), threads=2, giving_up=threading.Event())

    assert sorted(done) == list(range(6))
    assert most == 2


def test_an_error_is_raised_at_once_although_another_item_hangs_and_nothing_more_is_begun() -> None:
    begun: list[str] = []
    giving_up, end = threading.Event(), threading.Event()

    def work(item: str) -> None:
        begun.append(item)
        if item == "hangs":
            end.wait(timeout=20)
        if item == "fails":
            raise ValueError(item)

    try:
        with pytest.raises(ValueError, match="fails"):
            side_by_side(work, ["hangs", "fails", "later"], threads=2, giving_up=giving_up)
        assert giving_up.is_set()
    finally:
        end.set()
    assert "later" not in begun


def test_nothing_to_do_is_done_at_once() -> None:
    side_by_side(lambda item: None, [], threads=4, giving_up=threading.Event())
