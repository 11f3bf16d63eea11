"""The store's state: progress, facts, index, and which files may be served.

The downloading thread writes, the server's threads read; every field is replaced whole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from languagepipes_api.facts import ModelFacts

from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.weights.index import WeightsIndex

Phase = Literal["Resolving", "Downloading", "Verifying", "Converting", "Ready", "Failed"]


@dataclass
class StoreState:
    """error: set while something is tried again, and for good in phase Failed. paths: verified files by served name."""

    phase: Phase = "Resolving"
    done_bytes: int = 0
    total_bytes: int = 0
    error: WeightsError | None = None
    facts: ModelFacts | None = None
    index: WeightsIndex | None = None
    index_json: bytes = b""
    paths: Mapping[str, Path] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def put(self, name: str, path: Path) -> None:
        """`name` is verified and may be served."""
        with self._lock:
            self.paths = {**self.paths, name: path}

    @property
    def failed(self) -> bool:
        return self.phase == "Failed"

    def progress_json(self) -> dict[str, object]:
        return {
            "phase": self.phase,
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "error": self.error.to_json() if self.error is not None else None,
        }
