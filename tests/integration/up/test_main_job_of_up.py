"""One command plans, starts and joins everything; an OpenAI client gets a streamed answer from real weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from support import greedy
from support.greedy import QUESTIONS
from support.paths import ROOT
from support.up import Up

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def greedy_answers(model_file: Path) -> list[str]:
    """What unsplit transformers answers in float32, reading the same GGUF file by its own code."""
    return greedy.answers(model_file)


def ask(up: Up, question: str) -> str:
    stream = up.client().chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=40,
        stream=True,
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_streamed_greedy_answers_equal_those_of_unsplit_transformers(smollm2: Up, greedy_answers: list[str]) -> None:
    assert [ask(smollm2, question) for question in QUESTIONS] == greedy_answers


def test_questions_asked_at_once_get_the_answers_that_each_gets_alone(smollm2: Up, greedy_answers: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda question: ask(smollm2, question), QUESTIONS * 4))
    assert answers == greedy_answers * 4


def test_every_stage_reads_its_own_tensors_and_no_other_byte(smollm2: Up) -> None:
    ready = smollm2.ready
    for index, stage in enumerate(ready["stages"], 1):
        wanted = smollm2.metric(stage, "languagepipes_load_total_bytes")
        member = f"replica-0/stage-{index}"
        served = smollm2.metric(ready["store"], "languagepipes_store_served_bytes_total", member=member)
        assert wanted > 30e6
        assert wanted <= served <= 1.02 * wanted


def private_bytes(pid: int) -> int:
    """Memory that is the process's own. Members keep their memory from other users, so only root reads it exactly."""
    process = psutil.Process(pid)
    try:
        return process.memory_full_info().uss
    except psutil.AccessDenied:
        resident = process.memory_info()
        return resident.rss - resident.shared


def test_a_stage_stays_within_its_weights_its_kv_and_the_stated_overhead(smollm2: Up) -> None:
    import json

    plan = json.loads(
        subprocess.run(
            [Path(sys.executable).with_name("languagepipes"), "plan", smollm2.file, "-o", "json"],
            capture_output=True,
            check=True,
        ).stdout
    )
    for stage, assignment in zip(smollm2.ready["stages"], plan["stages"], strict=True):
        budget = assignment["weight_bytes"] + assignment["kv_bytes"] + assignment["overhead_bytes"]
        used = private_bytes(stage["pid"])
        assert used <= budget, f"{stage['name']}: {used / 2**20:.0f} MiB used, {budget / 2**20:.0f} MiB planned"


def test_the_demo_prints_a_coherent_answer_and_where_each_layer_ran(model_file: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples/demo.py", "--port", "18473"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Paris" in result.stdout
    assert "layers 2-11" in result.stdout
    assert "layers 21-29" in result.stdout
