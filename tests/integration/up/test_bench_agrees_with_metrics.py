"""What `languagepipes bench` reports of a pipe is what the pipe's own counters say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bench import bench, rows
from support.llama_files import write_tiny_llama
from support.up import Up, pipe

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

COUNTERS = ("languagepipes_prompt_tokens_total", "languagepipes_generated_tokens_total")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A Llama of a few kilobytes, a token a byte, as `languagepipes up` runs it."""
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_llama(directory / "model")
    resource = pipe(f"file://{directory}/model", model={"dtype": "float32", "maxContextLength": 512})
    with Up({**resource, "spec": {**resource["spec"], "stages": {"count": 2}}}, directory / "up") as up:
        yield up


def counters(up: Up) -> list[float]:
    return [up.metric(up.ready["end_model"], counter) for counter in COUNTERS]


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("load", [("--streams", "1,4"), ("--rate", "8")], ids=" ".join)
def test_tokens_are_those_that_the_end_model_counted(
    tiny: Up, tmp_path: Path, route: str, load: tuple[str, str]
) -> None:
    before = counters(tiny)

    done = bench(
        *(f"http://127.0.0.1:{tiny.port}", *load, "--route", route, "--requests", "8"),
        *("--prompt-tokens", "200-240", "--output-tokens", "10-20", "--json", tmp_path / "figures.json"),
        seconds=120,
    )

    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    parts = [*figures["levels"], figures["unmeasured"]]
    counted = [sum(part[name] for part in parts) for name in ("prompt_tokens", "output_tokens")]
    assert counted == [after - earlier for after, earlier in zip(counters(tiny), before, strict=True)]
    assert set(rows(done.stdout)["requests failed"]) == {"0"}
    for level in figures["levels"]:
        assert level["ended_early"] == 0
        assert level["output_throughput"] * level["duration_seconds"] == pytest.approx(level["output_tokens"])
        assert 195 <= level["mean_prompt_tokens"] <= 245
        assert level["tpot_ms"]["p99"] <= level["e2el_ms"]["p99"]
