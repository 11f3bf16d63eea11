"""Stages are lost while every link loses packets as well. It needs root for a network namespace of its own."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_no_request_is_lost_where_one_packet_of_a_hundred_is() -> None:
    command = ["-m", "support.chaos", "--faults", "4", "--seed", "39", "--packet-loss", "1"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT / "tests", capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    lost = re.search(r"^(\d+) packets were lost$", done.stdout, re.MULTILINE)
    assert lost is not None
    assert int(lost[1]) > 100
