"""README's section "On a cluster", typed as it stands there by a new user on the cluster's nodes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, programs
from support.installation import ROOT, Installation
from support.kubectl import CommandFailed, Kubectl

pytestmark = pytest.mark.kubernetes

SECTION = "## On a cluster\n"


def commands() -> list[list[str]]:
    """The commands of each fenced block of the section, in order."""
    section = (ROOT / "README.md").read_text().split(SECTION)[1].split("\n## ")[0]
    return [block.strip().splitlines() for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL)]


class Shell:
    """A user's shell in the repository's root, with helm and kubectl on its PATH."""

    def __init__(self, binaries: Path, kubeconfig: Path) -> None:
        for name, program in (("helm", programs.helm()), ("kubectl", programs.kubectl())):
            (binaries / name).symlink_to(program.resolve())
        self._environment = {
            **os.environ,
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
            "KUBECONFIG": str(kubeconfig),
        }

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> str:
        """What it prints. Raises CommandFailed."""
        process = self.start(command)
        output, _ = process.communicate(timeout=660)
        if process.returncode != 0:
            raise CommandFailed(f"{command}: {output}")
        return output


@pytest.fixture
def shell(our_cluster: Cluster, tmp_path: Path) -> Shell:
    """Where the images have the names that README and the chart give them."""
    return Shell(tmp_path, our_cluster.kubeconfig)


@pytest.fixture
def bare_cluster(admin: Kubectl, operator: Installation) -> Iterator[Kubectl]:
    """The cluster without the operator, as a new user has it; afterwards as it was, without what the user made."""
    operator.uninstall()
    yield admin
    admin("delete", "languagepipe/smollm2", "pod/models", "pvc/models", "--ignore-not-found", "--timeout=90s")
    operator.install()


def test_readme_serves_a_model_with_three_commands(shell: Shell, bare_cluster: Kubectl) -> None:
    weights, start, (forward, ask) = commands()
    assert [command.split()[0:2] for command in start] == [
        ["helm", "install"],
        ["kubectl", "apply"],
        ["kubectl", "wait"],
    ]
    for command in (*weights, *start):
        began = time.monotonic()
        shell.run(command)
        print(f"{time.monotonic() - began:6.1f} s  {command}")

    forwarding = shell.start(forward)
    try:
        assert forwarding.stdout is not None
        assert forwarding.stdout.readline().startswith("Forwarding from")
        answer = json.loads(shell.run(ask))
    finally:
        forwarding.terminate()
        forwarding.wait(timeout=10)
    assert answer["choices"][0]["message"]["content"].startswith("The capital of France is Paris")
