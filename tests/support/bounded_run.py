"""Runs a fuzz target for a bounded number of seeded inputs, as a process of its own: a crash must not end the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# libFuzzer judges by getrusage's ru_maxrss, which outlives exec: a process that pytest starts itself begins with
# pytest's own peak. One that a shell has forked begins with the shell's.
ALONE = ("sh", "-c", '"$@"; exit $?', "sh")


def survives(target: Path, corpus: Path, *, most_bytes: int) -> None:
    """AssertionError, with the fuzzer's termination message, unless `target` does 20,000 runs from `corpus`."""
    done = subprocess.run(
        [
            *ALONE, sys.executable, str(target), "-runs=20000", "-seed=1", "-timeout=20", "-rss_limit_mb=2048",
            f"-max_len={most_bytes}", f"-artifact_prefix={corpus.parent}/", str(corpus),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 20000 runs" in done.stderr
