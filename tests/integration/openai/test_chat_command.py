"""`languagepipes chat`, run as a process against a real server."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.requests import Failure
from support.scripted_engine import forever

COMMAND = [sys.executable, "-m", "languagepipes_operator.cli", "chat"]


def chat(*arguments: str, stdin: str = "", key: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    if key is not None:
        environment["OPENAI_API_KEY"] = key
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_one_question_is_answered_on_stdout(serve):
    served = serve("Hello [bold]world[/] \x1b[31m 🎉")
    done = chat("hello", "--url", served.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello [bold]world[/] [31m 🎉\n", "")


def test_questions_are_read_to_the_end_of_input_and_the_conversation_is_kept(serve):
    served = serve("Hello")
    done = chat("--url", f"{served.url}/v1/", "--system", "Be brief.", stdin="hello\n\nworld\n/new\nuser\n")
    assert (done.returncode, done.stdout) == (0, "Hello\n" * 3)
    prompts = [served.codec._tokenizer.decode(s.prompt, skip_special_tokens=False) for s in served.engine.submissions]
    assert "Hello" in prompts[1]
    assert "world" in prompts[1]
    assert "Hello" not in prompts[2]
    assert all(prompt.startswith("<|im_start|>system\nBe brief.") for prompt in prompts)


def test_options_reach_the_server(serve):
    served = serve("Hello")
    chat("hello", "--url", served.url, "--max-tokens", "9", "--temperature", "0.25", "--model", "tiny")
    assert served.engine.submissions[0].max_tokens == 9
    assert served.engine.submissions[0].sampling.temperature == 0.25


def test_errors_are_told_in_one_line(serve, tmp_path, codec):
    (tmp_path / "key").write_text("sk-right")
    served = serve("Hello", api_keys=ApiKeys(tmp_path))
    refused = chat("hello", "--url", served.url)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: 401: You did not provide an API key.")
    assert "--api-key or OPENAI_API_KEY" in refused.stderr
    assert chat("hello", "--url", served.url, key="sk-right").stdout == "Hello\n"
    unknown = chat("hello", "--url", served.url, "--api-key", "sk-right", "--model", "gpt")
    assert unknown.stderr == "error: 404: The model 'gpt' does not exist. This server serves 'tiny'.\n"
    nobody = chat("hello", "--url", "http://127.0.0.1:9")
    assert nobody.stderr.startswith("error: nothing answers at http://127.0.0.1:9/v1/")
    assert chat("hello", "--url", "localhost:8000").stderr.startswith("error: 'localhost:8000' is no URL")
    broken = chat("hello", "--url", served.url, key="sk-right\n")
    assert broken.stderr == "error: OPENAI_API_KEY has a line break or another control character: leave it out\n"
    broken = serve(lambda s: [*codec.encode("Hello"), Failure(0, "ring_down", "stage 2 went away")], pace_seconds=0.05)
    done = chat("hello", "--url", broken.url)
    assert (done.returncode, done.stdout) == (1, "Hello\n")
    assert done.stderr.startswith("error: the answer broke off: the ring of stages is down")
    assert done.stderr.endswith(": stage 2 went away\n")


def test_ctrl_c_stops_an_answer_and_not_the_conversation(serve, codec):
    served = serve(forever(codec), pace_seconds=0.02, max_context_length=100_000)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--url", served.url], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        _read_until(master, b"> ")
        os.write(master, b"hi\n")
        _read_until(master, b"hello hello")
        process.send_signal(signal.SIGINT)
        _read_until(master, b"stopped")
        served.wait_until_idle()
        os.write(master, b"/exit\n")
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read_until(terminal: int, wanted: bytes) -> None:
    seen = b""
    deadline = time.monotonic() + 15
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 4096)
