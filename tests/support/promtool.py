"""Prometheus' own promtool, which checks and tests rules and queries."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cluster import programs


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it; never raises for a failure of its own."""
    return subprocess.run([programs.promtool(), *arguments], capture_output=True, text=True, check=False)
