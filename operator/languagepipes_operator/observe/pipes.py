"""The pipes as they were last seen, and who is told when one is seen anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from languagepipes_operator.kube.informer import ObjectKey, key_of, trimmed
from languagepipes_operator.kube.kinds import Manifest


class Pipes:
    """on_change: called with each pipe that appeared, changed or went away."""

    def __init__(self, on_change: Callable[[ObjectKey], None]) -> None:
        self._pipes: dict[ObjectKey, Manifest] = {}
        self._on_change = on_change

    def seen(self, raw: Manifest) -> None:
        """As a watch or an answer shows it; an older version than the known one is nothing new."""
        key = key_of(raw)
        known = self._pipes.get(key)
        if known is not None and _version(known) >= _version(raw):
            return
        self._pipes[key] = trimmed(raw)
        self._on_change(key)

    def written(self, raw: Manifest) -> None:
        """As a write of our own gave it back: known now, and no reason to look again.

        Its answer may come after the watch has shown a later change, or the end: that stays.
        """
        known = self._pipes.get(key_of(raw))
        if known is not None and _version(known) < _version(raw):
            self._pipes[key_of(raw)] = trimmed(raw)

    def gone(self, key: ObjectKey, uid: str) -> None:
        """Deleted, unless there is another of that name already."""
        known = self._pipes.get(key)
        if known is not None and known["metadata"]["uid"] == uid:
            del self._pipes[key]
            self._on_change(key)

    def get(self, key: ObjectKey) -> Manifest | None:
        return self._pipes.get(key)

    def known(self) -> list[ObjectKey]:
        return list(self._pipes)

    def phases(self) -> Iterable[str]:
        """For each pipe, what its status says."""
        return [str((raw.get("status") or {}).get("phase") or "Pending") for raw in self._pipes.values()]


def _version(raw: Manifest) -> int:
    return int(raw["metadata"].get("resourceVersion") or 0)
