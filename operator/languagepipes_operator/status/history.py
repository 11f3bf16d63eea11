"""`status.history`: which revisions a pipe was asked to run, when, what each changed, and what became of it. Pure.

The status itself is the record, so that an entry and what the next one is compared with are one write, and an operator
that was restarted goes on where it was. Going back to an earlier spec is a new entry: it was asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from languagepipes_api.status import HISTORY_MAX, Condition, RevisionEntry
from pydantic import ValidationError

from languagepipes_operator.digest import digest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.status.failures import bounded
from languagepipes_operator.status.outcome import Outcome

# What shapes no pod: an edit of these alone is no revision.
_IGNORED = ("replicas", "paused", "networkPolicy", "autoscaling")
_SHAPING_OF_ROLLOUT = "rollout.drainSeconds"
_SPEC_MAX, _CHANGES_MAX, _CHANGE_MAX, _VALUE_MAX = 16 * 1024, 16, 256, 96
_UNSET = "unset"


def history_of(
    snapshot: Snapshot,
    outcome: Outcome,
    before: Mapping[str, Any],
    *,
    ready: Condition,
    progressing: Condition,
    complete: bool,
) -> tuple[RevisionEntry, ...]:
    """The newest first. before: the status as last read. complete: whether every replica runs the revision asked for
    and is ready, and no other is there.
    """
    entries = _read(before)
    stored = outcome.plan
    if outcome.revision is None or stored is None:
        return tuple(entries)
    spec = _shaping_fields(snapshot)
    if not entries or entries[0].revision != outcome.revision:
        now = snapshot.now.astimezone(UTC).replace(microsecond=0)
        # One that was complete before there was a history: when it became so is known.
        asked_at = ready.last_transition_time if not entries and complete else now
        entries = [
            RevisionEntry(
                revision=outcome.revision,
                asked_at=asked_at,
                generation=snapshot.pipe.metadata.generation or 0,
                changes=_changes(entries, spec, _at_default(snapshot, spec), stored.node_image),
                node_image=stored.node_image,
                outcome="Progressing",
                spec=_packed(spec),
            ),
            *_superseded(entries, outcome.revision),
        ]
    entries[0] = _judged(entries[0], ready=ready, progressing=progressing, complete=complete)
    return tuple(entries[:HISTORY_MAX])


def _read(before: Mapping[str, Any]) -> list[RevisionEntry]:
    try:
        return [RevisionEntry.model_validate(each) for each in before.get("history") or ()]
    except ValidationError:
        return []  # of another version


def _superseded(entries: Sequence[RevisionEntry], revision: str) -> list[RevisionEntry]:
    """The entries once another revision is asked for. What was completed, or was late, stays that."""
    if not entries:
        return []
    last, *earlier = entries
    became = last.outcome
    if became == "Progressing":
        became = "Undone" if any(each.revision == revision for each in earlier) else "Superseded"
    return [last.model_copy(update={"outcome": became, "spec": None}), *earlier]


def _judged(entry: RevisionEntry, *, ready: Condition, progressing: Condition, complete: bool) -> RevisionEntry:
    if entry.outcome == "Complete":
        return entry
    if complete:
        at = max(_time(ready.last_transition_time), _time(entry.asked_at))
        return entry.model_copy(update={"outcome": "Complete", "completed_at": at})
    late = progressing.reason == "ProgressDeadlineExceeded"
    return entry.model_copy(update={"outcome": "ProgressDeadlineExceeded" if late else "Progressing"})


def _time(value: datetime) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def _changes(
    entries: Sequence[RevisionEntry], spec: Mapping[str, str], at_default: frozenset[str], node_image: str
) -> tuple[str, ...]:
    """In words of the spec. at_default: fields that have the value that they have unwritten."""
    if not entries:
        return ()
    found: list[str] = []
    was = _unpacked(entries[0].spec)
    if was is not None:
        for path in sorted({*was, *spec}):
            old, new = was.get(path, _UNSET), spec.get(path, _UNSET)
            # A default that a newer CRD has is no change.
            if old != new and not (path not in was and path in at_default):
                digests = old.startswith("sha256:") or new.startswith("sha256:")
                found.append(f"{path}: changed" if digests else f"{path}: {old} -> {new}")
    if entries[0].node_image != node_image:
        found.append(f"node image: {entries[0].node_image} -> {node_image}")
    if len(found) > _CHANGES_MAX:
        found = [*found[: _CHANGES_MAX - 1], f"and {len(found) - _CHANGES_MAX + 1} more fields"]
    return tuple(bounded(each, _CHANGE_MAX) for each in found)


def _shaping_fields(snapshot: Snapshot) -> dict[str, str]:
    """The spec as the API server has it, defaults among it, by path: `stages.count`, `stages.list[gpu].layers`. A spec
    holds names of Secrets and never what is in them.
    """
    fields = {
        path: bounded(text, _VALUE_MAX)
        for path, text in _flat(snapshot.raw.get("spec") or {})
        if path.split(".")[0] not in _IGNORED and (not path.startswith("rollout.") or path == _SHAPING_OF_ROLLOUT)
    }
    # The largest parts of a spec that is too large are compared as a whole.
    while len(json.dumps(fields)) > _SPEC_MAX - 256:
        sizes: dict[str, int] = {}
        for path, text in fields.items():
            sizes[path.split(".")[0]] = sizes.get(path.split(".")[0], 0) + len(path) + len(text)
        largest = max(sizes, key=lambda each: (sizes[each], each))
        whole = {path: text for path, text in fields.items() if path.split(".")[0] == largest}
        fields = {path: text for path, text in fields.items() if path not in whole}
        fields[largest] = f"sha256:{digest(whole)}"
    return fields


def _at_default(snapshot: Snapshot, spec: Mapping[str, str]) -> frozenset[str]:
    written = snapshot.pipe.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return frozenset(spec) - {path for path, _ in _flat(written)}


def _flat(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, Mapping) and each.get("name") for each in value):
        for item in value:
            yield from _flat({key: each for key, each in item.items() if key != "name"}, f"{path}[{item['name']}]")
    else:
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        # Two long values that begin alike are still two.
        yield path, text if len(text) <= _VALUE_MAX else f"{text[: _VALUE_MAX - 10]} ({digest(text)[:6]})"


def _packed(spec: Mapping[str, str]) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _unpacked(text: str | None) -> dict[str, str] | None:
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    return {str(path): str(value) for path, value in found.items()} if isinstance(found, dict) else None
