"""Stages and links are lost under load, and no client notices more than a pause: 20 faults under 16 streams.

`make chaos` is the same with a thousand. What is broken, and what is compared, stands in tests/support/chaos.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.chaos.members import SHAPES
from support.chaos.run import Options, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Chosen so that every kind of fault comes, alone, beside another one, and while the ring recovers from one.
SEEDS = {name: 3 + number for number, name in enumerate(SHAPES)}


@pytest.mark.parametrize("name", SHAPES)
def test_every_answer_under_ten_faults_is_that_of_an_undisturbed_run_and_nothing_leaks(
    name: str, tmp_path: Path
) -> None:
    report = run(Options(SHAPES[name], faults=10, seed=SEEDS[name], seconds=240), tmp_path)

    print(report)
    assert not report.problems, str(report)
    assert report.counted["replays"] > 0, "no sequence was replayed: the faults broke nothing"
    assert report.counted["preemptions"] > 0, "no sequence was pre-empted: there are too many KV blocks"
