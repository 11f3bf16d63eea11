"""The main job, shown: serve a model over several stages, ask it through the openai client, say where each layer ran.

`make demo` runs it. It starts `languagepipes up`, waits until the ring health check has passed, asks, prints, and stops
everything again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import openai

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipe", nargs="?", type=Path, default=HERE / "smollm2.yaml", help="a LanguagePipe (YAML)")
    parser.add_argument("--question", default="What is the capital of France?")
    parser.add_argument("--port", default="8000")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        ready_file = Path(scratch, "ready.json")
        languagepipes = Path(sys.executable).with_name("languagepipes")
        started = time.monotonic()
        up = subprocess.Popen(
            [languagepipes, "up", options.pipe, "--port", options.port, "--ready-file", ready_file],
            start_new_session=True,  # Ctrl-C reaches this script, which then stops `up` in an orderly way
        )
        try:
            while not ready_file.exists():
                if up.poll() is not None:
                    return up.returncode or 1
                time.sleep(0.1)
            ready = json.loads(ready_file.read_text())
            print(
                f"\nReady after {time.monotonic() - started:.1f} s. Asking through the openai client:\n",
                flush=True,
            )
            ask(ready["url"], ready["model"], options.question)
            print("\nWhere each layer ran:")
            for member in ready["stages"]:
                print(f"  layers {member['layers']:<12} {member['name']:<12} process {member['pid']}")
        except KeyboardInterrupt:
            pass
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()
    return 0


def ask(url: str, model: str, question: str) -> None:
    """Stream one greedy answer to the terminal."""
    client = openai.OpenAI(base_url=url, api_key="none")
    print(f"> {question}")
    started = time.monotonic()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=100,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = None
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
        usage = chunk.usage or usage
    seconds = time.monotonic() - started
    assert usage is not None
    print(f"\n({usage.prompt_tokens} prompt tokens, {usage.completion_tokens} generated, {seconds:.2f} s)")


if __name__ == "__main__":
    sys.exit(main())
