"""`languagepipes bench` against servers that fail, cut streams, send no usage, or take less than others."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support.bench import COMMAND, PlayedServer, bench, content, environment, refusal, rows, stream, usage
from support.ports import free_port

# The probe asks twice before anything is measured.
PROBES = 2


async def whole(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
    tokens = body["max_tokens"]
    return await stream(request, *(content("a") for _ in range(tokens)), usage(body, tokens))


def interrupted(server: PlayedServer, arguments: list[str], *, once: threading.Event) -> tuple[int, str, str]:
    """Ctrl-C once the event is set: the command's status, output and errors."""
    process = subprocess.Popen(
        [*COMMAND, server.url, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert once.wait(30)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output, errors


def test_failures_are_counted_by_kind_and_the_first_message_of_each_is_shown() -> None:
    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        match (number - PROBES) % 5 if number > PROBES else 1:
            case 2:
                return refusal(500, f"out of memory at request {number}")
            case 3:
                return await stream(request, content("a"), cut=True)
            case 4:
                return await stream(request, content("a"), {"error": {"message": "the ring is down"}})
            case 0:
                return await stream(request, content("a"), "{broken")
        return await whole(request, body, number)

    with PlayedServer(answer) as server:
        done = bench(server.url, "--requests", "10", "--warmup", "0", "--prompt-tokens", "40", "--output-tokens", "4")

    assert done.returncode == 0
    table = rows(done.stdout)
    assert (table["requests completed"], table["requests failed"]) == (["2"], ["8"])
    assert table["output tokens, mean"] == ["4.00"]
    assert "1 stream: 2 failed, HTTP 500: out of memory at request 4\n" in done.stdout
    assert "1 stream: 2 failed, error in the stream: the ring is down\n" in done.stdout
    assert "1 stream: 2 failed, malformed stream: an event that is no JSON: '{broken'\n" in done.stdout
    assert "1 stream: 2 failed, cut off: " in done.stdout


def test_a_stream_that_ends_before_the_answer_does_is_cut_off() -> None:
    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        if number <= PROBES:
            return await whole(request, body, number)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')
        return response

    with PlayedServer(answer) as server:
        done = bench(server.url, "--requests", "2", "--warmup", "0")

    assert done.returncode == 1, "no request completed"
    assert "2 failed, cut off: the stream ended before the answer did" in done.stdout


def test_without_usage_chunks_and_words_are_counted_and_that_is_said(tmp_path: Path) -> None:
    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        return await stream(request, *(content("a") for _ in range(6)))

    with PlayedServer(answer) as server:
        done = bench(
            server.url, "--requests", "3", "--prompt-tokens", "40", "--output-tokens", "6", "--json", tmp_path / "f"
        )

        assert len(server.bodies[-1]["messages"][0]["content"].split()) == 40
    assert done.returncode == 0
    assert rows(done.stdout)["output tokens, mean"] == ["6.00"]
    assert "The server reports no usage: a prompt's length is its number of words" in done.stdout
    assert json.loads((tmp_path / "f").read_text())["levels"][0]["without_usage"] == 3


def test_several_tokens_in_a_chunk_are_counted_by_usage_and_gaps_by_chunks() -> None:
    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        return await stream(request, *(content("abc") for _ in range(4)), usage(body, 12), pause_seconds=0.03)

    with PlayedServer(answer) as server:
        done = bench(server.url, "--requests", "3", "--output-tokens", "12")

    table = rows(done.stdout)
    itl, tpot = (float(table[f"{name}, ms: p50 / p90 / p99"][0].split(" / ")[0]) for name in ("ITL", "TPOT"))
    assert table["output tokens, mean"] == ["12.0"]
    assert "a chunk has 3.00 tokens on average; ITL is the gap between chunks." in done.stdout
    assert itl >= 29
    assert 29 * 3 / 11 <= tpot < itl


@pytest.mark.parametrize(
    ("unknown", "sent", "said"),
    [
        ({"ignore_eos"}, {"min_tokens": 8, "max_tokens": 8}, "The server takes no ignore_eos"),
        (
            {"ignore_eos", "min_tokens", "max_tokens"},
            {"max_completion_tokens": 8},
            "The server takes neither ignore_eos nor min_tokens",
        ),
        (
            {"ignore_eos", "min_tokens", "stream_options"},
            {"max_tokens": 8},
            "The server refuses stream_options.include_usage.",
        ),
    ],
)
def test_a_server_is_asked_with_no_more_than_it_takes(unknown: set[str], sent: dict[str, int], said: str) -> None:
    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        if refused := unknown & body.keys():
            return refusal(400, f"Unrecognized request argument supplied: {', '.join(sorted(refused))}")
        events = [content("a")] * 5
        return await stream(request, *events, *([usage(body, 5)] if "stream_options" in body else []))

    with PlayedServer(answer) as server:
        done = bench(server.url, "--requests", "2", "--output-tokens", "8")

        known = {"model", "messages", "stream", "stream_options"}
        assert {name: value for name, value in server.bodies[-1].items() if name not in known} == sent
    assert done.returncode == 0
    assert said in done.stdout
    assert "2 of 2 answers are shorter than asked for" in done.stdout


def test_prompts_are_as_long_as_asked_for_by_the_server_s_count_and_share_the_prefix() -> None:
    with PlayedServer(whole) as server:
        arguments = ("--requests", "8", "--prompt-tokens", "50-60", "--shared-prefix", "30", "--output-tokens", "2")
        done = bench(server.url, *arguments, "--seed", "7", "--warmup", "3")
        first = [body["messages"][0]["content"] for body in server.bodies]
        bench(server.url, *arguments, "--seed", "7", "--warmup", "3")
        again = [body["messages"][0]["content"] for body in server.bodies[len(first) :]]

    asked = first[PROBES:]
    assert done.returncode == 0
    assert len(asked) == 3 + 8
    assert len({tuple(prompt.split()[:30]) for prompt in asked}) == 1
    assert len({tuple(prompt.split()[30:38]) for prompt in asked}) == len(asked), "the warm-up has prompts of its own"
    assert all(50 <= len(prompt.split()) + 5 - 30 <= 60 for prompt in asked)
    assert again == first, "one seed gives the same prompts"
    assert "after 30 shared ones" in done.stdout


def test_an_open_loop_sends_requests_when_they_are_due_whatever_comes_back(tmp_path: Path) -> None:
    async def slow(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        await asyncio.sleep(1.0 if number > PROBES + 1 else 0)
        return await whole(request, body, number)

    with PlayedServer(slow) as server:
        done = bench(server.url, "--rate", "20", "--requests", "20", "--output-tokens", "2", "--json", tmp_path / "f")

    level = json.loads((tmp_path / "f").read_text())["levels"][0]
    started = [request["started"] for request in level["requests"]]
    assert done.returncode == 0
    assert (level["completed"], level["level"]) == (20, {"kind": "rate", "value": 20.0})
    assert started == sorted(started)
    assert level["mean_concurrency"] > 4, "none waited for an answer to the one before"
    assert all(request["sent"] >= request["started"] for request in level["requests"])


def test_a_duration_ends_a_level_and_what_has_started_is_measured_to_its_end(tmp_path: Path) -> None:
    async def slow(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        events = [content("a")] * 4
        return await stream(request, *events, usage(body, 4), pause_seconds=0.2)

    with PlayedServer(slow) as server:
        done = bench(
            server.url, "--streams", "2,3", "--duration", "1.5s", "--output-tokens", "4", "--json", tmp_path / "f"
        )

    levels = json.loads((tmp_path / "f").read_text())["levels"]
    assert done.returncode == 0
    assert [level["duration_seconds"] for level in levels] == pytest.approx([1.5, 1.5], abs=0.01)
    assert all(request["output_tokens"] == 4 for level in levels for request in level["requests"])
    assert levels[0]["completed"] > levels[0]["request_throughput"] * 1.5, "the last of them ended after the window"
    assert levels[0]["output_throughput"] * 1.5 < 4 * levels[0]["completed"]


@pytest.mark.parametrize("load", [("--streams", "1"), ("--rate", "4")], ids=" ".join)
def test_ctrl_c_ends_with_the_report_of_what_was_measured(tmp_path: Path, load: tuple[str, str]) -> None:
    running = threading.Event()

    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        if number <= PROBES + 3:
            return await whole(request, body, number)
        running.set()
        return await stream(request, *([content("a")] * 600), pause_seconds=0.05)

    with PlayedServer(answer) as server:
        arguments = [*load, "--duration", "60s", "--warmup", "1", "--output-tokens", "4", "--json", str(tmp_path / "f")]
        status, output, errors = interrupted(server, arguments, once=running)

    table = rows(output)
    assert status == 130, errors
    assert table["requests completed"] == ["2"]
    assert table["requests failed"] == ["0"]
    assert int(table["requests cut off by Ctrl-C"][0]) >= 1
    assert "Stopped by Ctrl-C: the last level is not whole." in output
    assert json.loads((tmp_path / "f").read_text())["interrupted"] is True


def test_ctrl_c_before_the_server_has_answered_at_all_ends_it() -> None:
    asked = threading.Event()

    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(60)
        return await whole(request, body, number)

    with PlayedServer(answer) as server:
        status, output, _ = interrupted(server, ["--requests", "1"], once=asked)
        asked_in_all = len(server.bodies)

    assert (status, output, asked_in_all) == (130, "", 1)


def test_time_outs_are_failures_of_their_own() -> None:
    async def answer(request: web.Request, body: dict[str, Any], number: int) -> web.StreamResponse:
        if number > PROBES:
            await asyncio.sleep(5)
        return await whole(request, body, number)

    with PlayedServer(answer) as server:
        done = bench(server.url, "--requests", "1", "--warmup", "0", "--timeout", "800ms")

    assert done.returncode == 1
    assert "1 failed, time-out: no end after 0." in done.stdout


def test_the_model_must_be_named_where_a_server_has_several() -> None:
    with PlayedServer(whole, models=("a", "b")) as server:
        unnamed = bench(server.url, "--requests", "1")
        named = bench(server.url, "--requests", "1", "--model", "b", "--extra-body", '{"top_p": 0.5}')

        assert (server.bodies[-1]["model"], server.bodies[-1]["top_p"]) == ("b", 0.5)
    assert unnamed.returncode == 1
    assert unnamed.stderr.endswith("/v1/models lists 2 models (a, b): name one with --model\n")
    assert named.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:8000",), "'localhost:8000' is no URL: expected http://HOST:PORT or https://HOST"),
        (("http://h", "--json", "/nowhere/f"), "--json: /nowhere/f: there is no directory /nowhere: make it"),
        (("http://h", "--json", "/"), "--json: / is a directory: name a file"),
        (("http://h", "--api-key", "k\n"), "--api-key has a line break or another control character: leave it out"),
        (
            ("http://me:secret@h",),
            "the URL has a user's name or password: leave it out, and give a key with --api-key",
        ),
        (("http://h", "--plot", "f.png"), "--plot: f.png: only SVG is written: use a name that ends with .svg"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_measured(arguments: tuple[str, ...], message: str) -> None:
    done = bench(*arguments)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {message}\n")


def test_without_matplotlib_a_plot_is_refused_with_what_to_install_before_anything_is_measured(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from languagepipes_operator.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "bench", "http://h", "--plot", str(tmp_path / "f.svg")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("error: --plot: matplotlib is not installed: pip install matplotlib")


@pytest.mark.parametrize("model", [(), ("--model", "m")])
def test_a_server_that_is_away_is_told_in_one_sentence(model: tuple[str, ...]) -> None:
    done = bench(f"http://127.0.0.1:{free_port()}", *model)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "Connect call failed" in done.stderr or "Connection refused" in done.stderr
