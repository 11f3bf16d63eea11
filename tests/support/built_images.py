"""The container images that `hack/build_images.py` built last."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT

NAMES = ("node", "operator", "client", "models")


def archives() -> dict[str, Path]:
    """Their archives, by name; those that were never built are left out."""
    printed = subprocess.run(
        [sys.executable, ROOT / "hack" / "build_images.py", "--print"], check=True, capture_output=True
    )
    return {name: Path(path) for name, path in json.loads(printed.stdout).items()}


def tags() -> dict[str, str]:
    """The names that they have on nodes, by name."""
    version = importlib.metadata.version("languagepipes")
    return {name: f"languagepipes-{name}:{version}" for name in NAMES}
