"""The store's state: progress, facts, index, and which files may be served.

The downloading thread writes, the server's threads read; every field is replaced whole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from languagepipes_api.facts import ModelFacts
from languagepipes_api.plan import Quantization, weights_revision
from languagepipes_api.store_answers import Problem, StorePhase, StoreProgress

from languagepipes_node.store.arithmetic import RememberedArithmetic
from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.weights.index import WeightsIndex


@dataclass
class StoreState:
    """error: set while something is tried again, and for good in phase Failed. paths: verified files by served name.
    quantization: what the served weights are.
    """

    phase: StorePhase = "Resolving"
    done_bytes: int = 0
    total_bytes: int = 0
    error: WeightsError | None = None
    facts: ModelFacts | None = None
    quantization: Quantization = "none"
    index: WeightsIndex | None = None
    index_json: bytes = b""
    paths: Mapping[str, Path] = field(default_factory=dict)
    arithmetic: RememberedArithmetic = field(default_factory=RememberedArithmetic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def put(self, name: str, path: Path) -> None:
        """`name` is verified and may be served."""
        with self._lock:
            self.paths = {**self.paths, name: path}

    @property
    def weights_revision(self) -> str:
        """What members ask for by If-Match; empty while it is unknown."""
        return "" if self.facts is None else weights_revision(self.facts.revision, self.quantization)

    @property
    def failed(self) -> bool:
        return self.phase == "Failed"

    def progress(self) -> StoreProgress:
        """The answer of /v1/progress."""
        return StoreProgress(
            phase=self.phase,
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            error=None if self.error is None else Problem(**self.error.to_json()),
        )
