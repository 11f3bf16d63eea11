"""The header of a benchmark's report, as `benchmarks.machine.describe` makes it, of a machine that is not there."""

from __future__ import annotations

from typing import Any

MACHINE: dict[str, Any] = {
    "taken_at": "2026-01-01 00:00:00 +0000",
    "command": "python -m benchmarks.peers",
    "processor": "a processor",
    "flags": [],
    "cores": 2,
    "memory_gib": 8.0,
    "kernel": "6.0",
    "python": "3.11",
    "packages": {},
    "revision": "abc",
    "load_average_before": [0.0],
}
