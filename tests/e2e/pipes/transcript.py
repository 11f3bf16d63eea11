"""Record what `kubectl get lp -w` and `kubectl describe lp` print in a pipe's life, into docs/cluster.md.

    KUBECONFIG=… .venv/bin/python tests/e2e/pipes/transcript.py

Needs the operator and the claim `models`, as README's "On a cluster" makes them, and no pipe `smollm2`.
Applies that pipe, kills one of its stages, and deletes it in the end.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from support.paths import ROOT

KUBECTL = Path(sys.executable).with_name("kubectl")
PAGE = ROOT / "docs/cluster.md"
EXAMPLE = "examples/smollm2-cluster.yaml"


def kubectl(*arguments: str) -> str:
    done = subprocess.run([KUBECTL, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


class Watch:
    """`kubectl get lp -w`, each line with the seconds since `begin`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._began: float | None = None
        self._process = subprocess.Popen([KUBECTL, "get", "lp", "-w"], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        time.sleep(2)  # so that it watches before anything happens

    def begin(self) -> None:
        self._began = time.monotonic()

    def taken(self) -> str:
        """What was printed since the last call."""
        time.sleep(1)
        lines, self.lines = self.lines, []
        return "".join(lines)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            header = line.startswith("NAME ") or self._began is None
            clock = " " * 9 if header else f"{time.monotonic() - self._began:6.1f} s  "
            self.lines.append(clock + line.rstrip() + "\n")


def wait_ready(status: str) -> None:
    kubectl("wait", f"--for=condition=Ready={status}", "lp/smollm2", "--timeout=5m")


def describe(*, whole: bool = False) -> str:
    """As kubectl prints it, from Status on unless `whole`."""
    text = kubectl("describe", "lp", "smollm2")
    return text if whole else "…\n" + text[text.index("Status:\n") :]


def record() -> list[tuple[str, str]]:
    """The commands and what they printed."""
    watch = Watch()
    try:
        watch.begin()
        shown = [(f"kubectl apply -f {EXAMPLE}", kubectl("apply", "-f", EXAMPLE))]
        time.sleep(2)
        early = describe()
        wait_ready("True")
        shown += [
            ("kubectl get lp -w        # begun before the apply; the seconds are since then", watch.taken()),
            ("kubectl describe lp smollm2        # 2 s after the apply", early),
            ("kubectl describe lp smollm2        # Ready", describe(whole=True)),
        ]
        selector = "languagepipes.io/pipe=smollm2,languagepipes.io/stage=2"
        pod = kubectl("get", "pods", "-l", selector, "-o", "name").strip()
        kill = f"kubectl delete {pod} --force --grace-period=0"
        watch.begin()
        shown.append((kill, kubectl(*kill.split()[1:])))
        wait_ready("False")
        time.sleep(1)
        lost = describe()
        wait_ready("True")
        shown += [
            ("kubectl get lp -w        # goes on; the seconds are since the kill", watch.taken()),
            ("kubectl describe lp smollm2        # while the stage is lost", lost),
            ("kubectl describe lp smollm2        # Ready again", describe()),
            ("kubectl delete lp smollm2", kubectl("delete", "lp", "smollm2", "--wait=true")),
        ]
        return shown
    finally:
        watch.end()


def main() -> int:
    began = "<!-- recorded by tests/e2e/pipes/transcript.py -->\n"
    ended = "<!-- end of the recording -->\n"
    blocks = [f"```console\n$ {command}\n{output.rstrip()}\n```\n" for command, output in record()]
    before, _, rest = PAGE.read_text().partition(began)
    _, _, after = rest.partition(ended)
    PAGE.write_text(f"{before}{began}\n" + "\n".join(blocks) + f"\n{ended}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
