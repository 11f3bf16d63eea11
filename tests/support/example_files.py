"""The files under examples/ that are about a pipe of another one."""

from __future__ import annotations

from typing import Any

import yaml
from languagepipes_operator.observe.snapshot import Snapshot

from support.example_pipes import pipe_snapshot
from support.paths import ROOT


def example_objects(path: str) -> list[dict[str, Any]]:
    """path: under examples/."""
    return list(yaml.safe_load_all((ROOT / "examples" / path).read_text(encoding="utf-8")))


def object_of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def snapshot_of(pipe: dict[str, Any], *, namespace: str = "default") -> Snapshot:
    """Of a pipe as it stands in an example, applied to that namespace."""
    spec = pipe["spec"]
    return pipe_snapshot(pipe["metadata"]["name"], namespace=namespace, source=spec["model"]["source"], **spec)
