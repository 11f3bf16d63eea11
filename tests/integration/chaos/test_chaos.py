"""Stages and links are lost under load, and no client notices more than a pause: 20 faults under 16 streams.

`make chaos` is the same with a thousand. What is broken, and what is compared, stands in tests/support/chaos.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from support.chaos.faults import Kind, When, schedule
from support.chaos.members import SHAPES
from support.chaos.processes import Processes
from support.chaos.run import Options, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Chosen so that every kind of fault comes, and comes alone, beside another one, and while the ring recovers from one.
SEEDS = dict(zip(SHAPES, (2365, 2366, 2367, 2368), strict=True))
FAULTS = dict(zip(SHAPES, (6, 6, 4, 4), strict=True))


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as processes:
        yield processes


def test_the_faults_of_these_seeds_are_of_every_kind() -> None:
    faults = [
        fault
        for name, seed in SEEDS.items()
        for group in schedule(seed, FAULTS[name], stages=SHAPES[name].stages)
        for fault in group
    ]

    assert {fault.kind for fault in faults} == set(get_args(Kind))
    assert {fault.when for fault in faults} == set(get_args(When))


@pytest.mark.parametrize("name", SHAPES)
def test_every_answer_under_faults_is_that_of_an_undisturbed_run_and_nothing_leaks(
    name: str, processes: Processes, tmp_path: Path
) -> None:
    report = run(Options(SHAPES[name], faults=FAULTS[name], seed=SEEDS[name], seconds=240), processes, tmp_path)

    print(report)
    assert not report.problems, str(report)
    assert report.counted["replays"] > 0, "no sequence was replayed: the faults broke nothing"
    assert report.counted["prefix_cache_hit_tokens"] > 0, "no prompt was found to begin with known blocks"
    assert report.counted["preemptions"] > 0, "no sequence was pre-empted: there are too many KV blocks"
    if SHAPES[name].speculation != "none":
        drafted, right = (report.counted[f"speculation_{kind}_tokens"] for kind in ("draft", "accepted"))
        assert 0 < right < drafted, f"of {drafted} drafts {right} were right: some must be, and some must not"
