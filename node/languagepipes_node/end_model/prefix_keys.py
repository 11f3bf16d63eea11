"""Keys of full KV blocks: a chain of hashes over the tokens of a block and of all before it.

The chain begins with a request's domain, so that equal tokens of two domains have different keys, and is keyed by a
secret of this process: who sees a key learns nothing of the tokens, and nobody can search for two texts with one key.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from hashlib import blake2b

# A chance of 2^-64 that any two of 2^32 blocks have one key.
_KEY_BYTES = 16


class PrefixKeys:
    """block_tokens: of a KV block."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._secret = secrets.token_bytes(32)

    def extend(self, keys: list[bytes], tokens: Sequence[int], *, blocks: int, domain: str) -> None:
        """Append to `keys`, those of the first blocks of `tokens`, until there are `blocks` of them. tokens: ids of
        0 to 2^63 - 1, enough for so many blocks."""
        if len(keys) >= blocks:
            return
        size, secret = self._block_tokens, self._secret
        parent = keys[-1] if keys else blake2b(domain.encode(), key=secret, digest_size=_KEY_BYTES).digest()
        for start in range(len(keys) * size, blocks * size, size):
            content = parent + array("q", tokens[start : start + size]).tobytes()
            parent = blake2b(content, key=secret, digest_size=_KEY_BYTES).digest()
            keys.append(parent)
