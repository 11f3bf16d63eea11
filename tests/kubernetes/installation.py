"""The operator on a cluster, installed by the chart as a user does it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kubectl import CommandFailed, Kubectl
from serving import Images

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/languagepipes"
NAMESPACE = "languagepipes-system"
RELEASE = "languagepipes"


class Installation:
    """One release of the chart. `kubectl` reaches the release's namespace."""

    def __init__(self, kubectl: Kubectl, helm: Path, images: Images) -> None:
        self.kubectl = kubectl.within(NAMESPACE)
        self._helm, self._images = helm, images

    def helm(self, *arguments: str, timeout_seconds: float = 300) -> str:
        """What helm prints. Raises CommandFailed."""
        result = subprocess.run(
            [self._helm, "--namespace", NAMESPACE, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env={**os.environ, "KUBECONFIG": str(self.kubectl.kubeconfig)},
            check=False,
        )
        if result.returncode != 0:
            raise CommandFailed(f"helm {' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def install(self, *arguments: str) -> str:
        """`helm upgrade --install`, back when the operator is ready."""
        return self.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--create-namespace", "--wait", "--timeout", "3m"),
            *self._values(),
            *arguments,
        )

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--wait", "--timeout", "1m")

    def logs(self) -> str:
        return self.kubectl("logs", "--selector", "app.kubernetes.io/name=languagepipes", "--tail=-1", "--prefix")

    def _values(self) -> tuple[str, ...]:
        operator, node = (_named(image) for image in (self._images.operator, self._images.node))
        return (
            *("--set", f"image.repository={operator[0]}", "--set-string", f"image.tag={operator[1]}"),
            *("--set", f"nodeImage.repository={node[0]}", "--set-string", f"nodeImage.tag={node[1]}"),
        )


def _named(image: str) -> tuple[str, str]:
    repository, _, tag = image.rpartition(":")
    return repository, tag
