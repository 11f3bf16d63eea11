"""Runs the real `languagepipes up` for a test and lets it look at what a user or an operator would look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import yaml

from support.metrics_page import metric
from support.ports import free_port

LANGUAGEPIPES = Path(sys.executable).with_name("languagepipes")


def pipe(source: str, *, name: str = "tiny", **spec: Any) -> dict[str, Any]:
    """A LanguagePipe; `spec` replaces or adds whole fields of spec."""
    model = {"source": source, **spec.pop("model", {})}
    return {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": name},
        "spec": {"model": model, "stages": {"count": 3}, **spec},
    }


class Up:
    """`languagepipes up` as a context manager: ready on entry, and nothing of it left on exit."""

    def __init__(self, resource: dict[str, Any], scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.file = scratch / "pipe.yaml"
        self.file.write_text(yaml.safe_dump(resource))
        self.ready_file = scratch / "ready.json"
        self.output = scratch / "output.txt"
        self.log_dir = scratch / "logs"
        self.port = free_port()
        self.arguments: list[str | Path] = [
            *("--port", str(self.port)),
            *("--ready-file", self.ready_file),
            *("--cache-dir", scratch / "cache"),
            *("--log-dir", self.log_dir),
        ]

    def start(self) -> None:
        """As on entry, without waiting."""
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [LANGUAGEPIPES, "up", self.file, *self.arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Up:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def wait_ready(self, seconds: float = 120.0, *, before: dict[str, Any] | None = None) -> dict[str, Any]:
        """The ready file's contents, once it is there and other than `before`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"up ended with {self.process.returncode}:\n{self.said()}")
            try:
                ready: dict[str, Any] = json.loads(self.ready_file.read_text())
            except FileNotFoundError:
                ready = {}
            if ready and ready != before:
                return ready
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s:\n{self.said()}")

    @property
    def ready(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.ready_file.read_text())
        return loaded

    def said(self) -> str:
        """What `up` printed, and the members' logs."""
        logs = [f"--- {path.name}\n{path.read_text()}" for path in sorted(self.log_dir.glob("*"))]
        return "\n".join([self.output.read_text(), *logs])

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 120, **options}
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", **options)

    def metric(self, member: dict[str, Any], name: str, /, **labels: str) -> float:
        """The sum of a member's samples called `name` that carry `labels`."""
        return metric(httpx.get(f"http://{member['telemetry']}/metrics").text, name, absent=0, **labels)

    def pids(self) -> list[int]:
        """`up` and everything under it."""
        try:
            under = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            under = []
        return [self.process.pid, *(each.pid for each in under)]

    def stop(self) -> int:
        """Ctrl-C, as a terminal sends it. The exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def __exit__(self, *exc: object) -> None:
        self.stop()
