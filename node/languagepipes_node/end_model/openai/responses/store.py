"""Responses that are kept, so that later requests can go on from them. In memory, bounded, each for its owner alone.

The owner with the largest share loses first, and of its responses the one that was used least recently. It is
remembered for a while that it was forgotten, so that its owner is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from sys import getsizeof

import orjson

from languagepipes_node.end_model.openai.errors import ResponseNotFound
from languagepipes_node.end_model.openai.message_schemas import ChatMessage

_MOST_REMEMBERED = 10_000
_OVERHEAD_BYTES = 1024  # of a response or a turn, beside its text
_ITEM_OVERHEAD_BYTES = 400  # of an item, a message or a call: objects, ids and the places where they are looked up

_WHY_UNKNOWN = (
    "Responses are kept in the memory of one server: those of a server that was started again, or of another one, are "
    "not known here."
)


def compact_json(value: object) -> bytes:
    """`value` as JSON that takes no more memory than its length: orjson's own bytes hold on to a buffer of 4 KiB."""
    return bytes(memoryview(orjson.dumps(value)))


@dataclass(eq=False)
class Turn:
    """What one request and its answer added to a conversation. Responses that go on from one another share turns."""

    parent: Turn | None
    messages: Sequence[ChatMessage]
    holders: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """In bytes, roughly."""
        return _OVERHEAD_BYTES + sum(
            _ITEM_OVERHEAD_BYTES * (1 + len(message.calls))
            + getsizeof(message.content)
            + getsizeof(message.reasoning)
            + sum(getsizeof(c.arguments) for c in message.calls)
            for message in self.messages
        )

    def line(self) -> Iterator[Turn]:
        """It, its parent, and so on."""
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn.parent

    @property
    def history(self) -> list[ChatMessage]:
        """All messages of the conversation so far, but for instructions."""
        return [message for turn in reversed(list(self.line())) for message in turn.messages]


@dataclass(frozen=True, eq=False)
class StoredResponse:
    """body: the response as JSON. items: its input, and output: what was answered, each item as JSON, by their ids.

    All as `compact_json` writes it.
    """

    id: str
    owner: str
    body: bytes
    items: dict[str, bytes]
    turn: Turn
    output: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        items = (*self.items.values(), *self.output.values())
        return _OVERHEAD_BYTES + len(self.body) + sum(map(len, items)) + _ITEM_OVERHEAD_BYTES * len(items)


@dataclass(eq=False)
class _Share:
    """What one owner has: its responses, the least recently used first, and their bytes."""

    kept: OrderedDict[str, StoredResponse] = field(default_factory=OrderedDict)
    bytes: int = 0


class ResponseStore:
    """most: responses kept; most_bytes: of memory for them, roughly. Belongs to the event loop."""

    def __init__(self, *, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._kept: dict[str, StoredResponse] = {}
        self._shares: dict[str, _Share] = {}  # by owner
        self._gone: OrderedDict[str, tuple[str, str]] = OrderedDict()  # owners and reasons
        self._items: dict[tuple[str, str], list[str]] = {}  # owners and items, to the responses that have them
        self._bytes = 0

    @property
    def size(self) -> int:
        """In bytes, roughly, of all that is kept."""
        return self._bytes

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._most > 0 and self._most_bytes > 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, response: StoredResponse) -> bool:
        """Whether it is kept: not if it alone is too large. Others may be forgotten for it."""
        alone = response.size + sum(turn.size for turn in response.turn.line())
        if not self.keeps or alone > self._most_bytes:
            reason = (
                f"was forgotten at once: it takes {alone} bytes, and this server keeps {self._most_bytes} in memory"
            )
            self._remember(response, reason)
            return False
        share = self._shares.setdefault(response.owner, _Share())
        self._kept[response.id] = share.kept[response.id] = response
        added = response.size
        for item in (*response.items, *response.output):
            self._items.setdefault((response.owner, item), []).append(response.id)
        for turn in response.turn.line():
            if not turn.holders:
                added += turn.size
            turn.holders += 1
        self._bytes += added
        share.bytes += added
        while len(self._kept) > self._most or self._bytes > self._most_bytes:
            self._forget_one()
        return True

    def find(self, id: str, owner: str, *, param: str) -> StoredResponse:
        """Raises ResponseNotFound if there is none, also if it is another owner's."""
        response = self._kept.get(id)
        if response is not None and response.owner == owner:
            self._shares[owner].kept.move_to_end(id)
            return response
        shown = id if len(id) <= 64 else id[:64] + "…"
        whose, reason = self._gone.get(id, ("", ""))
        if reason and whose == owner:
            raise ResponseNotFound(f"The response '{shown}' {reason}. Send the conversation as 'input'.", param=param)
        raise ResponseNotFound(f"There is no response '{shown}'. {_WHY_UNKNOWN}", param=param)

    def find_item(self, id: str, owner: str, *, param: str) -> bytes:
        """An item of the input or the output of a response that is kept, as JSON. Raises ResponseNotFound."""
        holders = self._items.get((owner, id))
        if holders is None:
            shown = id if len(id) <= 64 else id[:64] + "…"
            raise ResponseNotFound(
                f"There is no item '{shown}', or not any more. {_WHY_UNKNOWN} Send the item itself.", param=param
            )
        response = self.find(holders[0], owner, param=param)
        return response.output.get(id) or response.items[id]

    def delete(self, id: str, owner: str, *, param: str) -> None:
        """Raises ResponseNotFound."""
        self._remove(self.find(id, owner, param=param), "was deleted")

    def _forget_one(self) -> None:
        """Of the owner with the most of what there is too much of."""
        if len(self._kept) > self._most:
            share = max(self._shares.values(), key=lambda share: len(share.kept))
        else:
            share = max(self._shares.values(), key=lambda share: share.bytes)
        self._remove(
            next(iter(share.kept.values())),
            f"was forgotten: this server keeps the {self._most} responses that were used last, and "
            f"{self._most_bytes} bytes of them, in memory",
        )

    def _remove(self, response: StoredResponse, reason: str) -> None:
        share = self._shares[response.owner]
        del self._kept[response.id], share.kept[response.id]
        gone = response.size
        for item in (*response.items, *response.output):
            holders = self._items[response.owner, item]
            holders.remove(response.id)
            if not holders:
                del self._items[response.owner, item]
        for turn in response.turn.line():
            turn.holders -= 1
            if not turn.holders:
                gone += turn.size
        self._bytes -= gone
        share.bytes -= gone
        if not share.kept:
            del self._shares[response.owner]
        self._remember(response, reason)

    def _remember(self, response: StoredResponse, reason: str) -> None:
        self._gone[response.id] = (response.owner, reason)
        if len(self._gone) > _MOST_REMEMBERED:
            self._gone.popitem(last=False)
