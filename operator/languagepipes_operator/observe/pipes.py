"""The pipes: kopf's index of what the watch has shown, and over it what writes and reads of our own gave back since."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from languagepipes_operator.kube.informer import ObjectKey, key_of
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.scale_writes import trimmed_pipe

Index = Mapping[ObjectKey, Collection[Manifest]]


class Pipes:
    """index: complete before the first event is handled. on_change: called with each pipe that appeared, changed or
    went away.
    """

    def __init__(self, index: Index, on_change: Callable[[ObjectKey], None]) -> None:
        self._index = index
        self._on_change = on_change
        # Newer than the index when they came.
        self._newer: dict[ObjectKey, Manifest] = {}
        # UIDs that the index still has; the watch has yet to show, or has missed, their end.
        self._gone: set[str] = set()

    def get(self, key: ObjectKey) -> Manifest | None:
        """Not to be changed by readers."""
        known = [raw for raw in self._index.get(key, ()) if raw["metadata"]["uid"] not in self._gone]
        if key in self._newer:
            known.append(self._newer[key])
        return max(known, key=_version, default=None)

    def known(self) -> list[ObjectKey]:
        return [key for key in {*self._index, *self._newer} if self.get(key) is not None]

    def all(self) -> Iterable[Manifest]:
        """As `get` has them."""
        return [raw for key in {*self._index, *self._newer} if (raw := self.get(key)) is not None]

    def phases(self) -> Iterable[str]:
        """For each pipe, what its status says."""
        pipes = (self.get(key) or {} for key in self.known())
        return [str((raw.get("status") or {}).get("phase") or "Pending") for raw in pipes]

    def conditions(self) -> Iterable[tuple[str, str, str, str, bool]]:
        """(namespace, pipe, type, reason, whether it is True) of each condition, as the pipes' statuses have them."""
        for raw in self.all():
            key = key_of(raw)
            for condition in (raw.get("status") or {}).get("conditions") or ():
                is_true = condition["status"] == "True"
                yield key.namespace, key.name, condition["type"], condition["reason"], is_true

    def watched(self, raw: Manifest) -> None:
        """The watch shows it, and the index has it. The echo of a write of our own is no reason to look again.

        One that is older than our write is: somebody else changed it in between.
        """
        key = key_of(raw)
        ours = self._newer.get(key)
        if ours is not None and _version(ours) <= _version(raw):
            del self._newer[key]
        if ours is None or _version(ours) != _version(raw):
            self._on_change(key)

    def ended(self, raw: Manifest) -> None:
        """The watch shows that it was deleted, and the index has it no more."""
        self._gone.discard(raw["metadata"]["uid"])
        self._drop(key_of(raw), raw["metadata"]["uid"])
        self._on_change(key_of(raw))

    def seen(self, raw: Manifest) -> None:
        """As an answer shows it; an older version than the known one is nothing new."""
        key = key_of(raw)
        known = self.get(key)
        if known is None or _version(known) < _version(raw):
            self._newer[key] = trimmed_pipe(raw)
            self._on_change(key)

    def written(self, raw: Manifest) -> None:
        """As a write of our own gave it back: known now, and no reason to look again.

        Its answer may come after the watch has shown a later change, or the end: that stays.
        """
        known = self.get(key_of(raw))
        if known is not None and _version(known) < _version(raw):
            self._newer[key_of(raw)] = trimmed_pipe(raw)

    def gone(self, key: ObjectKey, uid: str) -> None:
        """An answer shows that it is no more; there may be another of that name already."""
        if any(raw["metadata"]["uid"] == uid for raw in self._index.get(key, ())):
            self._gone.add(uid)
        self._drop(key, uid)
        self._on_change(key)

    def _drop(self, key: ObjectKey, uid: str) -> None:
        if key in self._newer and self._newer[key]["metadata"]["uid"] == uid:
            del self._newer[key]


def _version(raw: Manifest) -> int:
    return int(raw["metadata"].get("resourceVersion") or 0)
