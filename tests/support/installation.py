"""The operator on a cluster, installed by the chart as a user does it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from pathlib import Path

from support import members
from support.kubectl import CommandFailed, Kubectl, wait_for
from support.metrics_page import metric
from support.paths import ROOT
from support.serving import Images

CHART = ROOT / "charts/languagepipes"
NAMESPACE = "languagepipes"  # as README and docs/chart.md say it: test_readme.py installs there literally
RELEASE = "languagepipes"
DEPLOYMENT = "deployment/languagepipes-operator"
PODS = "app.kubernetes.io/name=languagepipes,app.kubernetes.io/component=operator"


class Installation:
    """One release of the chart. `kubectl` reaches the release's namespace."""

    def __init__(self, kubectl: Kubectl, helm: Path, images: Images, *, chart: Path = CHART) -> None:
        self.kubectl = kubectl.within(NAMESPACE)
        self._helm, self._images, self._chart = helm, images, chart

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
            *("upgrade", "--install", RELEASE, str(self._chart), "--create-namespace", "--wait", "--timeout", "3m"),
            *self._values(),
            *arguments,
        )

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE, "--wait", "--timeout", "1m")

    def logs(self) -> str:
        """Of the pods that are there; one that goes away between list and reading makes kubectl begin anew."""
        arguments = ("logs", "--selector", "app.kubernetes.io/name=languagepipes", "--tail=-1", "--prefix")
        return str(wait_for("the operator's logs", lambda: (done := self.kubectl.run(*arguments)).stdout or None))

    def leader(self) -> str:
        """The pod that holds the Lease, or nothing."""
        lease = self.kubectl.get("lease", "languagepipes-operator")
        return str(lease["spec"].get("holderIdentity") or "")

    def pods(self) -> list[str]:
        """Operator pods that are neither ending nor over."""
        return [
            pod["metadata"]["name"]
            for pod in self.kubectl.list("pods", PODS)
            if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") == "Running"
        ]

    def wait_acting(self, *, other_than: Collection[str] = (), pipes: int = 1, timeout_seconds: float = 120) -> str:
        """The leading pod, another one than those, once it has reconciled so often. All its first looks are over."""

        def acting() -> str | None:
            leader = self.leader()
            if not leader or leader in other_than or leader not in self.pods():
                return None
            return leader if self.metric(leader, "reconciles_total", outcome="done") >= pipes else None

        return wait_for("another leader that acts", acting, timeout_seconds=timeout_seconds)

    def metric(self, pod: str, name: str, **labels: str) -> float:
        """A number of that operator pod's /metrics; 0 where it is not there (yet)."""
        text = members.fetch(self.kubectl, pod, "/metrics")
        return metric(text, f"languagepipes_operator_{name}", absent=0, **labels)

    def _values(self) -> tuple[str, ...]:
        operator, node = (_named(image) for image in (self._images.operator, self._images.node))
        return (
            *("--set", f"image.repository={operator[0]}", "--set-string", f"image.tag={operator[1]}"),
            *("--set", f"nodeImage.repository={node[0]}", "--set-string", f"nodeImage.tag={node[1]}"),
        )


def _named(image: str) -> tuple[str, str]:
    repository, _, tag = image.rpartition(":")
    return repository, tag
