"""The file that --ready-file names: there exactly while the pipe is ready, with its URL and its processes as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from languagepipes_api.plan import Plan

from languagepipes_operator.cli.up.snapshot import END_MODEL, STORE, Snapshot


class ReadyFile:
    """Writes and removes the file at `path`; does nothing without a path. model: the name that clients use."""

    def __init__(self, path: Path | None, *, model: str) -> None:
        self._path = path
        self._model = model
        self._text: str | None = None

    def keep(self, seen: Snapshot, plan: Plan | None, telemetry: Mapping[str, str]) -> None:
        """Make the file say what is seen now. telemetry: each member's telemetry address, by its name."""
        if self._path is None or plan is None:
            return
        text = self._json(plan, seen, telemetry) if seen.ready else None
        if text == self._text:
            return
        self._text = text
        if text is None:
            self._path.unlink(missing_ok=True)
            return
        # Atomic, since whoever waits for the file reads it at once.
        directory, prefix = self._path.parent, f".{self._path.name}."
        with tempfile.NamedTemporaryFile("w", dir=directory, prefix=prefix, delete=False) as file:
            file.write(text)
        os.replace(file.name, self._path)

    def remove(self) -> None:
        """Remove the file if it is this object's."""
        if self._path is not None and self._text is not None:
            self._path.unlink(missing_ok=True)

    def _json(self, plan: Plan, seen: Snapshot, telemetry: Mapping[str, str]) -> str:
        views = {
            view.name: {
                "name": view.name,
                "layers": view.work,
                "pid": view.pid,
                "telemetry": telemetry[view.name],
            }
            for view in seen.members
        }
        return json.dumps(
            {
                "url": seen.url,
                "model": self._model,
                "plan_hash": plan.hash,
                "stages": [{**views[stage.name], "layers": str(stage.layers)} for stage in plan.stages],
                "end_model": views[END_MODEL],
                "store": views[STORE],
            },
            indent=2,
        )
