"""What the store of responses keeps, counts and forgets."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from languagepipes_node.end_model.openai.errors import ResponseNotFound
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.responses.store import (
    ResponseStore,
    StoredResponse,
    Turn,
    compact_json,
)


def response(id: str, *, text: str = "x", parent: Turn | None = None, owner: str = "alice") -> StoredResponse:
    return StoredResponse(id, owner, text.encode(), {"msg_1": b"{}"}, Turn(parent, [ChatMessage("user", text)]))


def known(store: ResponseStore, id: str, *, owner: str = "alice") -> bool:
    try:
        return store.find(id, owner, param="id").id == id
    except ResponseNotFound:
        return False


def test_nothing_is_counted_once_all_is_gone() -> None:
    store = ResponseStore(most=10, most_bytes=1 << 20)
    first = response("a")
    second = response("b", parent=first.turn)
    for one in (first, second, response("c", parent=second.turn)):
        store.keep(one)
    assert store.size > 0
    for id in ("b", "c", "a"):
        store.delete(id, "alice", param="id")
    assert (len(store), store.size) == (0, 0)


def test_a_turn_that_two_share_is_counted_once_and_stays_for_the_other() -> None:
    store = ResponseStore(most=10, most_bytes=1 << 30)
    root = response("root", text="y" * 100_000)
    store.keep(root)
    alone = store.size
    for id in ("left", "right"):
        store.keep(response(id, parent=root.turn))
    assert store.size < alone + 20_000
    store.delete("root", "alice", param="id")
    left = store.find("left", "alice", param="id")
    assert [message.content for message in left.turn.history] == ["y" * 100_000, "x"]
    assert store.size > 100_000
    store.delete("left", "alice", param="id")
    store.delete("right", "alice", param="id")
    assert store.size == 0


def test_bytes_are_bounded_and_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(most=1000, most_bytes=100_000)
    for number in range(50):
        store.keep(response(str(number), text="z" * 5_000))
        store.find("0", "alice", param="id")
        assert store.size <= 100_000
    assert store.find("0", "alice", param="id").id == "0"
    assert store.find("49", "alice", param="id").id == "49"
    with pytest.raises(ResponseNotFound, match="was forgotten: this server keeps the 1000 responses"):
        store.find("1", "alice", param="id")


def test_what_is_too_large_by_itself_is_forgotten_at_once() -> None:
    store = ResponseStore(most=1000, most_bytes=10_000)
    store.keep(response("a", text="z" * 20_000))
    assert (len(store), store.size) == (0, 0)
    with pytest.raises(ResponseNotFound, match="was forgotten at once: it takes"):
        store.find("a", "alice", param="id")


def test_nothing_is_forgotten_for_what_is_too_large_by_itself() -> None:
    store = ResponseStore(most=1000, most_bytes=50_000)
    root = response("root", text="z" * 10_000)
    store.keep(root)
    store.keep(response("large", text="z" * 60_000))
    store.keep(response("long", text="z" * 20_000, parent=root.turn))  # with the turn that it goes on from
    assert [id for id in ("root", "large", "long") if known(store, id)] == ["root"]


@pytest.mark.parametrize(("most", "most_bytes"), [(20, 1 << 30), (1000, 100_000)])
def test_the_owner_with_the_largest_share_loses_first(most: int, most_bytes: int) -> None:
    store = ResponseStore(most=most, most_bytes=most_bytes)
    for number in range(3):
        store.keep(response(f"alice {number}", text="z" * 3_000))
    for number in range(200):
        store.keep(response(f"bob {number}", text="z" * 3_000, owner="bob"))
    assert [number for number in range(3) if known(store, f"alice {number}")] == [0, 1, 2]
    assert known(store, "bob 199", owner="bob")
    assert not known(store, "bob 0", owner="bob")
    assert store.size <= most_bytes


def test_an_item_is_found_as_long_as_a_response_has_it() -> None:
    store = ResponseStore(most=10, most_bytes=1 << 20)
    for id in ("a", "b"):
        store.keep(response(id))
    for id in ("b", "a"):
        assert store.find_item("msg_1", "alice", param="id") == b"{}"
        store.delete(id, "alice", param="id")
    with pytest.raises(ResponseNotFound, match="There is no item 'msg_1'"):
        store.find_item("msg_1", "alice", param="id")


def test_an_item_that_reuses_an_id_does_not_replace_the_first() -> None:
    store = ResponseStore(most=10, most_bytes=1 << 20)
    for id, item in (("a", b'{"text":"first"}'), ("b", b'{"text":"second"}')):
        store.keep(StoredResponse(id, "alice", b"", {"msg_1": item}, Turn(None, [])))
    assert store.find_item("msg_1", "alice", param="id") == b'{"text":"first"}'


def test_the_bytes_that_are_counted_are_those_that_are_taken() -> None:
    """By the process: orjson's buffers are no memory of Python's."""
    store = ResponseStore(most=1000, most_bytes=1 << 30)
    before = _resident_bytes()
    for number in range(40):
        items = {f"msg_{number}_{item}": compact_json({"number": item}) for item in range(500)}
        turn = Turn(None, [ChatMessage("user", f"{number} {item}") for item in range(500)])
        store.keep(StoredResponse(str(number), "alice", compact_json({"number": number}), items, turn))
    assert _resident_bytes() - before < store.size


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_another_owner_is_told_nothing() -> None:
    store = ResponseStore(most=1, most_bytes=1 << 20)
    store.keep(response("a"))
    store.keep(response("b"))
    for id in ("a", "b", "never"):
        with pytest.raises(ResponseNotFound, match=f"There is no response '{id}'"):
            store.find(id, "bob", param="id")


def test_what_is_remembered_of_forgotten_ones_is_bounded() -> None:
    store = ResponseStore(most=0, most_bytes=0)
    for number in range(10_001):
        store.keep(response(str(number)))
    with pytest.raises(ResponseNotFound, match="There is no response '0'"):
        store.find("0", "alice", param="id")
    with pytest.raises(ResponseNotFound, match="was forgotten"):
        store.find("10000", "alice", param="id")
