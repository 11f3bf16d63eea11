"""The real kubectl and helm, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from support.waiting import PATIENCE_SECONDS, eventually


class CommandFailed(AssertionError):
    """A command ended with another status than 0; the message has all that it printed."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster and, with `namespace`, in one namespace."""

    program: Path
    kubeconfig: Path
    namespace: str | None = None

    def within(self, namespace: str) -> Kubectl:
        return replace(self, namespace=namespace)

    def __call__(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 120) -> str:
        """What the command prints on stdout. Raises CommandFailed."""
        result = self.run(*arguments, stdin=stdin, timeout_seconds=timeout_seconds)
        if result.returncode != 0:
            raise CommandFailed(f"kubectl {' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    def run(
        self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """As above, whatever its exit status."""
        place = ("--namespace", self.namespace) if self.namespace else ()
        return subprocess.run(
            [self.program, *place, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The command, running; its stdout is a pipe."""
        place = ("--namespace", self.namespace) if self.namespace else ()
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        return subprocess.Popen([self.program, *place, *arguments], stdout=subprocess.PIPE, text=True, env=environment)

    def apply(self, *manifests: dict[str, Any]) -> None:
        self("apply", "--server-side", "--validate=strict", "-f", "-", stdin=_documents(manifests))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object. Raises CommandFailed if it is not there."""
        found: dict[str, Any] = json.loads(self("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        chosen = ("--selector", selector) if selector else ()
        items: list[dict[str, Any]] = json.loads(self("get", kind, *chosen, "-o", "json"))["items"]
        return items


T = TypeVar("T")


def wait_for(
    what: str, ask: Callable[[], T | None], *, timeout_seconds: float = PATIENCE_SECONDS, every_seconds: float = 0.5
) -> T:
    """The first answer that is true. Raises AssertionError that says what was awaited."""
    return eventually(ask, what=what, seconds=timeout_seconds, every_seconds=every_seconds)


def _documents(manifests: tuple[dict[str, Any], ...]) -> str:
    return "\n---\n".join(json.dumps(manifest) for manifest in manifests)


@contextmanager
def closed(kubectl: Kubectl, node: str) -> Iterator[None]:
    """The node gets no new pods. It is not cordoned: that would move those that are there."""
    kubectl("taint", "node", node, "tests.languagepipes.io/closed=:NoSchedule")
    try:
        yield
    finally:
        kubectl("taint", "node", node, "tests.languagepipes.io/closed-")
