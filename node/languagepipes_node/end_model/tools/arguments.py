"""What may be a call's arguments, and how many calls one message may hold: the same of calls that are given out and of
calls that clients send back."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import orjson

from languagepipes_node.end_model.tools.source import Malformed

MAX_CALLS = 128
# Of one integer: what Python reads.
_TOO_MANY_DIGITS = re.compile(rf"(?<!\d)\d{{{sys.int_info.default_max_str_digits + 1}}}")


def check(text: str) -> None:
    """Raises Malformed if `text` is no JSON object, or one that a strict reader refuses: as half of a surrogate pair.

    A megabyte takes some milliseconds.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed from error
    if not isinstance(value, dict) or _TOO_MANY_DIGITS.search(text):
        raise Malformed


def is_object(text: str) -> bool:
    """Whether `check` raises nothing."""
    try:
        check(text)
    except Malformed:
        return False
    return True


def value_of(text: str) -> Any:
    """What arguments that passed `check` hold; integers have all their digits."""
    try:
        return json.loads(text)
    except RecursionError:
        return orjson.loads(text)
