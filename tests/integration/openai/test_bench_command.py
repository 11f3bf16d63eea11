"""`languagepipes bench`, run as a process against the real API in front of an engine that answers by a script."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from languagepipes_node.end_model.openai.auth import ApiKeys
from support.bench import COMMAND, bench, environment, rows
from support.scripted_engine import forever

ARGUMENTS = ("--requests", "6", "--prompt-tokens", "60", "--output-tokens", "12")


def test_a_sweep_is_reported_as_a_table_a_file_and_a_plot(serve, codec, tmp_path: Path):
    served = serve(forever(codec), pace_seconds=0.005)
    done = bench(
        *(served.url, *ARGUMENTS, "--streams", "1,3", "--goodput", "ttft:20s,e2el:40s"),
        *("--json", tmp_path / "figures.json", "--plot", tmp_path / "figures.svg"),
    )
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert table["1 stream"] == ["3 streams"]
    assert table["requests completed"] == ["6", "6"]
    assert table["output tokens, mean"] == ["12.0", "12.0"]
    assert table["goodput, % of requests"] == ["100", "100"]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["model"] == "tiny"
    assert [level["output_tokens"] for level in figures["levels"]] == [72, 72]
    assert ElementTree.parse(tmp_path / "figures.svg").getroot().tag.endswith("svg")
    # The engine saw what the report says: two of the probe, one and three of the warm-up, and twice six.
    measured = [submission for submission in served.engine.submissions if submission.max_tokens == 12]
    assert len(measured) == 1 + 3 + 12
    assert len({submission.prompt for submission in measured}) == len(measured)
    prompt_tokens = [r["prompt_tokens"] for level in figures["levels"] for r in level["requests"]]
    assert sorted(prompt_tokens) == sorted(len(submission.prompt) for submission in [*measured[1:7], *measured[10:]])
    assert 50 <= sum(prompt_tokens) / len(prompt_tokens) <= 70


def test_completions_are_measured_too(serve, codec):
    served = serve(forever(codec))
    done = bench(served.url, *ARGUMENTS, "--route", "completions", "--temperature", "0.5")
    assert done.returncode == 0, done.stderr
    assert rows(done.stdout)["output tokens, mean"] == ["12.0"]
    assert served.engine.submissions[-1].sampling.temperature == 0.5


def test_answers_end_where_the_model_ends_them_if_that_is_wanted(serve):
    served = serve("Hello world")
    done = bench(served.url, *ARGUMENTS, "--no-ignore-eos")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 answers are shorter than asked for" in done.stdout


def test_keys_and_models_that_the_server_refuses_are_told_in_one_sentence(serve, tmp_path: Path):
    (tmp_path / "key").write_text("sk-right")
    served = serve("Hello", api_keys=ApiKeys(tmp_path))
    for arguments in ((), ("--model", "tiny")):
        refused = bench(served.url, *arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "401: You did not provide an API key." in refused.stderr
        assert refused.stderr.endswith("(give the key with --api-key or OPENAI_API_KEY)\n")
    unknown = bench(served.url, "--model", "gpt", key="sk-right")
    assert unknown.returncode == 1
    assert unknown.stderr == (
        "error: the server refuses: 404: The model 'gpt' does not exist. This server serves 'tiny'.\n"
    )
    file = tmp_path / "figures.json"
    right = bench(served.url, *ARGUMENTS, "--api-key", "sk-right", "--no-ignore-eos", "--json", file)
    assert right.returncode == 0, right.stderr
    assert "sk-right" not in file.read_text()


def test_prompts_that_do_not_fit_are_refused_with_the_server_s_sentence(serve, codec):
    done = bench(serve(forever(codec)).url, "--prompt-tokens", "4000")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(r"error: a prompt of \d+ words is refused: 400: This model's maximum context", done.stderr)


def test_a_terminal_shows_a_bar_while_it_runs(serve, codec):
    served = serve(forever(codec), pace_seconds=0.02)
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, served.url, "--duration", "3s", "--prompt-tokens", "60", "--output-tokens", "12"],
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "160"},
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 65536):
                shown += piece
        except OSError:
            pass  # Linux: the last writer left
        output = process.communicate()[0]
    os.close(master)
    assert process.returncode == 0
    assert "━".encode() in shown
    assert b"tok/s" in shown
    assert rows(output)["requests failed"] == ["0"]
