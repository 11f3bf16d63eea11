"""A short hash of a JSON value. It goes into names, labels and annotations of objects, so it never changes."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """16 hex digits of a JSON value's SHA-256, the same for the same value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def canonical_json(value: object) -> bytes:
    """Sorted keys and no spaces: the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
