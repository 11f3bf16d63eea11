"""Files that scripts in hack/ write."""

from __future__ import annotations

import subprocess
import sys

from support.paths import ROOT


def assert_up_to_date(script: str) -> None:
    """The files are what hack/`script` writes."""
    check = subprocess.run(
        [sys.executable, ROOT / "hack" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stderr) == (0, "")
