"""Which full KV blocks are known by what they hold, who uses them, and which goes first where blocks are short.

A key stands for a block's tokens and for all before them (`prefix_keys.py`). A block that is known never changes: its
keys and values are valid at every member. A known block that no lease holds is *idle*: it can be found, and evicted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class CachedBlocks:
    """Not thread-safe: the engine's thread alone uses it. version: another one than before if `find` or `in_use` may
    answer differently."""

    def __init__(self) -> None:
        self.version = 0
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        # Leases that hold a block, for blocks that are known or were.
        self._users: dict[int, int] = {}
        # Known blocks without users, longest idle first, each with the number of blocks that became idle before it.
        self._idle: OrderedDict[int, int] = OrderedDict()
        self._ticks = 0

    def __len__(self) -> int:
        """Blocks that are known, idle or not."""
        return len(self._key_of)

    @property
    def idle(self) -> int:
        """Known blocks that no lease holds."""
        return len(self._idle)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Blocks of the first keys, as far as all of them are known."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def in_use(self, blocks: Sequence[int]) -> int:
        """How many of these known blocks some lease holds."""
        return sum(1 for block in blocks if block not in self._idle)

    def users(self, block: int) -> int:
        """Leases that hold the block; 0: it was never known, so its only lease need not be counted."""
        return self._users.get(block, 0)

    def add(self, block: int, key: bytes) -> None:
        """A block that one lease holds is full and valid. Nothing happens if another block is known by that key."""
        if key in self._block_of or block in self._key_of:
            return
        self._block_of[key] = block
        self._key_of[block] = key
        self._users.setdefault(block, 1)
        self.version += 1

    def take(self, block: int) -> None:
        """One more lease holds this known block."""
        users = self._users.get(block, 0)
        self._users[block] = users + 1
        if not users:
            del self._idle[block]
            self.version += 1

    def let_go(self, block: int) -> bool:
        """A lease gives the block up; whether nobody else needs it."""
        users = self._users.pop(block, 1) - 1
        if users:
            self._users[block] = users
            return False
        if block not in self._key_of:
            return True
        self._ticks += 1
        self._idle[block] = self._ticks
        self.version += 1
        return False

    def is_stale(self, block: int) -> bool:
        """Whether it is idle, and has been for longer than about half of the others."""
        tick = self._idle.get(block)
        if tick is None:
            return False
        oldest = next(iter(self._idle.values()))
        return 2 * tick <= oldest + self._ticks

    def evict(self, block: int | None = None) -> int:
        """Forget this idle block, or the one that has been idle for longest. Returns it."""
        if block is None:
            block, _ = self._idle.popitem(last=False)
        else:
            del self._idle[block]
        self._forget(block)
        return block

    def forget(self, block: int) -> bool:
        """Nobody finds it any more. Returns whether it was idle, so that nobody needs it."""
        if block not in self._key_of:
            return False
        self._forget(block)
        return self._idle.pop(block, None) is not None

    def forget_all(self) -> list[int]:
        """Nothing is known any more. Returns the blocks that were idle."""
        idle = list(self._idle)
        self._idle.clear()
        self._block_of.clear()
        self._key_of.clear()
        self.version += 1
        return idle

    def _forget(self, block: int) -> None:
        del self._block_of[self._key_of.pop(block)]
        self.version += 1
