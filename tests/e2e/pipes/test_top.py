"""`languagepipes top` of a real pipe, by way of a real API server, while it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.kubectl import Kubectl, wait_for
from support.serving import Client, wait_ready

pytestmark = pytest.mark.kubernetes
LANGUAGEPIPES = Path(sys.executable).with_name("languagepipes")


def top(kubectl: Kubectl, *arguments: str) -> list[str]:
    done = subprocess.run(
        [LANGUAGEPIPES, "top", "--interval", "5", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def figure(lines: list[str], name: str) -> str:
    """What stands behind this word in the line of the only ring."""
    (ring,) = [line for line in lines if line.startswith("replica ")]
    assert "ring up" in ring
    (found,) = [part for part in ring.split("   ") if part.startswith(f"{name} ")]
    return found.removeprefix(f"{name} ")


def test_top_shows_the_ring_of_a_pipe_that_answers(smollm2: Kubectl, client: Client) -> None:
    url = wait_ready(smollm2)["status"]["url"]
    asking = threading.Event()

    def ask() -> None:
        while not asking.is_set():
            client.ask(url, "Tell me a long story.", max_tokens=64)

    def answering() -> list[str] | None:
        shown = top(smollm2, "-n", str(smollm2.namespace), "smollm2")
        known = figure(shown, "tokens/s") not in ("–", "0.0") and figure(shown, "between tokens") != "–"
        return shown if known and "no metrics" not in "".join(shown) else None

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        lines = wait_for("tokens", answering)
    finally:
        asking.set()
        thread.join()

    assert lines[0].startswith(f"{smollm2.namespace}/smollm2  Ready  replicas 1/1  pvc://")
    assert float(figure(lines, "tokens/s")) > 0
    assert figure(lines, "between tokens").endswith("s")
    members = [line for line in lines if line.startswith(("End Model", "stage-"))]
    assert [line.split("  ")[0] for line in members] == ["End Model", "stage-1", "stage-2", "stage-3"]
    assert all(" Ready " in line and " % " in line for line in members)
    assert any(line.startswith("weights store on ") for line in lines)

    everything = top(smollm2, "--all-namespaces", "--once")
    # The same picture where this is the only pipe of the cluster, else a line for each.
    place = str(smollm2.namespace)
    assert any(line.startswith(f"{place}/smollm2 ") or line.split()[:2] == [place, "smollm2"] for line in everything)
