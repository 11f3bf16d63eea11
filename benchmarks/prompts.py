"""Chat prompts of exact lengths, different every time, so that nothing is answered from a cache.

Every contender gets the same messages and puts them through the same chat template; lengths count what the model sees,
template included. Pure, apart from the counter that a caller hands in.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Messages = list[dict[str, str]]

_SYSTEM = "Never stop."
_ASK = "Tell a very long story:"
# Common words that the tokenizers in question know as one token each.
_WORD_LIST = """
    river stone house light water tree bird wind road fire snow night sea ship king queen city field horse garden
    winter summer morning evening market music letter window door table glass paper silver gold iron bread salt cloud
    rain storm island forest mountain valley bridge castle village teacher doctor farmer child mother father brother
    sister friend stranger dream memory secret story song dance game war peace hope fear love anger silence
"""
_WORDS = _WORD_LIST.split()


class LengthImpossible(ValueError):
    """No prompt of that many tokens can be built; the message says which length is the least."""


def chat_prompt(length: int, *, seed: int, count: Callable[[Messages], int]) -> Messages:
    """Messages that `count` says are exactly `length` tokens long. Equal seeds give equal messages."""
    dice = random.Random(seed)

    def messages(words: list[str]) -> Messages:
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": " ".join([*words, _ASK])}]

    words: list[str] = []
    have = count(messages(words))
    if have > length:
        raise LengthImpossible(f"a prompt of {length} tokens: the template and the question alone take {have}")
    while have < length:
        # Words in bulk while far away; one at a time, and only fitting ones, near the end.
        batch = dice.choices(_WORDS, k=max(1, (length - have) // 2))
        longer = count(messages(words + batch))
        if longer <= length:
            words, have = words + batch, longer
    return messages(words)


def decode_lengths(streams: int) -> list[int]:
    """Unequal prompt lengths around 32 tokens, so that a batch has to be padded and a ring has to pack."""
    return [32] if streams == 1 else [26 + (step * 5) % 13 for step in range(streams)]
