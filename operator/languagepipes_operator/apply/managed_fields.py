"""Who set which fields, as the API server keeps it in metadata.managedFields. Pure.

What a create sets belongs to its manager as an *update*; an apply by the same manager counts as another owner, and
never takes away what the update still holds. So what was created has to be turned into what was applied before the
first apply, as client-go's util/csaupgrade does it for `kubectl apply`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]


def as_applied(entries: Sequence[Entry], manager: str) -> list[Entry] | None:
    """The entries with all that `manager` created or updated counted as applied; None if there is no such thing.

    Entries of subresources stay as they are.
    """
    updated = [each for each in entries if _is(each, manager, "Update")]
    if not updated:
        return None
    applied = [each for each in entries if _is(each, manager, "Apply")]
    fields: Mapping[str, Any] = {}
    for each in (*applied, *updated):
        fields = _union(fields, each.get("fieldsV1") or {})
    ours = {**(applied or updated)[0], "operation": "Apply", "fieldsV1": fields}
    return [ours, *(each for each in entries if each not in updated and each not in applied)]


def _is(entry: Entry, manager: str, operation: str) -> bool:
    return entry.get("manager") == manager and entry.get("operation") == operation and not entry.get("subresource")


def _union(one: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of two field sets: every key is a path element, an empty mapping is the element itself."""
    return {**one, **{key: _union(one.get(key) or {}, value) for key, value in other.items()}}
