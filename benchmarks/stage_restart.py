"""Where the time goes from the kill of a stage under `languagepipes up` until the ring serves again.

    python -m benchmarks.stage_restart [--source URL] [--kills 6]

Stages are killed in turn (SIGKILL). The parts, each a median in milliseconds:

started    until `up` has started the next process (its entry among the children of `up`)
python     until that process answers on its telemetry port: the interpreter, and what a member imports before torch
torch      until torch is imported (the plan, the store's index and config.json are read meanwhile)
loading    until its weights are in place and it accepts the ring's connections
ring       until the End Model's ring health check has passed

A state is asked for every few milliseconds, so a part is known to about as much.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.models import GGUF
from benchmarks.processes import Server, free_port

PARTS = ("started", "python", "torch", "loading", "ring")
_ASK_SECONDS = 0.004
_LONGEST_SECONDS = 120.0
_PIPE = """\
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {{name: restart}}
spec:
  model: {{source: "{source}", maxContextLength: 512}}
  stages: {{count: 3}}
"""


def state_of(telemetry: str) -> dict[str, Any]:
    """A member's /status; empty while it does not answer."""
    connection = http.client.HTTPConnection(telemetry, timeout=2)
    try:
        connection.request("GET", "/status")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()


def until(condition: Callable[[], bool]) -> float:
    """Wait for it. The moment, in seconds by time.monotonic(). Raises TimeoutError."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the ring did not come back")
        time.sleep(_ASK_SECONDS)
    return time.monotonic()


def children(pid: int) -> set[int]:
    """The processes that `pid` has started and not reaped."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for listed in lists for child in listed.read_text().split()}


def kill_one(up: int, stage: dict[str, Any], end_model: str) -> dict[str, float]:
    """Kill the stage of the ready file. Seconds of each of PARTS."""
    telemetry = stage["telemetry"]
    before = children(up)
    moments = [time.monotonic()]
    os.kill(stage["pid"], signal.SIGKILL)
    moments.append(until(lambda: bool(children(up) - before)))
    moments.append(until(lambda: bool(state_of(telemetry))))
    moments.append(until(lambda: state_of(telemetry).get("state") in ("loading", "ready")))
    moments.append(until(lambda: state_of(telemetry).get("state") == "ready"))
    moments.append(until(lambda: bool(state_of(end_model).get("ring_ready"))))
    return {part: then - since for part, since, then in zip(PARTS, moments, moments[1:], strict=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=f"file://{GGUF}", help="spec.model.source (default: SmolLM2)")
    parser.add_argument("--kills", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipe, ready_file = Path(folder, "pipe.yaml"), Path(folder, "ready.json")
        pipe.write_text(_PIPE.format(source=options.source))
        up = Server(
            [
                str(Path(sys.executable).with_name("languagepipes")),
                *("up", str(pipe), "--port", str(free_port()), "--ready-file", str(ready_file)),
            ],
            log=Path(folder, "up.log"),
            environment=os.environ,
            directory=Path(folder),
        )
        try:
            up.wait_until(ready_file.exists, what="languagepipes up", timeout_seconds=300)
            killed = []
            for number in range(options.kills):
                time.sleep(12)  # a member that falls again within ten seconds is held back
                ready = json.loads(ready_file.read_text())
                stage = ready["stages"][number % len(ready["stages"])]
                killed.append(kill_one(up.pid, stage, ready["end_model"]["telemetry"]))
        finally:
            up.stop(signal_number=signal.SIGINT)
    for part in PARTS:
        samples = sorted(1000 * times[part] for times in killed)
        print(f"{part:8} {statistics.median(samples):7.0f} ms  ({samples[0]:.0f} to {samples[-1]:.0f})")
    total = sorted(1000 * sum(times.values()) for times in killed)
    print(f"{'in all':8} {statistics.median(total):7.0f} ms  ({total[0]:.0f} to {total[-1]:.0f})")


if __name__ == "__main__":
    main()
