"""Record what kubectl prints in a pipe's life, into docs/cluster.md, and what a client and kubectl see of a stage that
is killed under a stream, into docs/recovery.md.

    PYTHONPATH=tests KUBECONFIG=… .venv/bin/python tests/e2e/pipes/transcript.py [cluster | recovery]

Needs the operator and the claim `models`, as README's "On a cluster" makes them, and no pipe `smollm2`.
Applies that pipe, kills one of its stages, and deletes it in the end.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.paths import ROOT

KUBECTL = Path(sys.executable).with_name("kubectl")
EXAMPLE = "examples/smollm2-cluster.yaml"
PORT = 8000
PAUSE_SECONDS = 0.5
STREAMED = {
    "model": "smollm2",
    "prompt": "The history of the sea begins",
    "max_tokens": 200,
    "temperature": 0,
    "stream": True,
}


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


class Stream:
    """A streamed completion, read in a thread: its pieces, each with the seconds since it was asked for."""

    def __init__(self, port: int) -> None:
        self.pieces: list[tuple[float, str]] = []
        self._port = port
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        began = time.monotonic()
        connection.request("POST", "/v1/completions", json.dumps(STREAMED), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            at, text = time.monotonic() - began, line.decode().rstrip()
            if text.startswith(":"):
                self.pieces.append((at, f"{text}\n"))
            elif text == "data: [DONE]" or '"error"' in text:
                self.pieces.append((at, f"\n{text}"))
            elif text:
                choices = json.loads(text.removeprefix("data: "))["choices"]
                self.pieces.append((at, "".join(choice["text"] for choice in choices)))

    def __str__(self) -> str:
        """A line for all that came without a pause."""
        lines: list[str] = []
        before = float("-inf")
        for at, text in self.pieces:
            if at - before > PAUSE_SECONDS or text.startswith((":", "\n")):
                lines.append(f"{at:6.1f} s  ")
            lines[-1] += text.strip("\n").replace("\n", " ")
            before = at
        return "\n".join(textwrap.fill(line, 110, subsequent_indent=" " * 10) for line in lines)


def record_recovery() -> list[tuple[str, str]]:
    """A stage is killed under a stream."""
    kubectl("apply", "-f", EXAMPLE)
    wait_ready("True")
    forward = subprocess.Popen([KUBECTL, "port-forward", "svc/smollm2", f"{PORT}:80"], stdout=subprocess.DEVNULL)
    watch = Watch()
    try:
        selector = "languagepipes.io/pipe=smollm2,languagepipes.io/stage=2"
        pod = kubectl("get", "pods", "-l", selector, "-o", "name").strip()
        watch.taken()
        stream = Stream(PORT)
        time.sleep(1.5)
        watch.begin()
        kill = f"kubectl delete {pod} --force --grace-period=0"
        killed = kubectl(*kill.split()[1:])
        stream.thread.join()
        wait_ready("True")
        time.sleep(2)
        reasons = ("Recovering", "Recovered", "StageLost", "RingDown")
        events = kubectl("get", "events", "--field-selector", "involvedObject.kind=LanguagePipe")
        shown = [line for line in events.splitlines() if line.startswith("LAST") or any(r in line for r in reasons)]
        curl = (
            f"curl -sN localhost:{PORT}/v1/completions -H 'Content-Type: application/json' -d '{json.dumps(STREAMED)}'"
        )
        return [
            (f"{curl}\n# the texts of the chunks; a new line wherever nothing came for {PAUSE_SECONDS} s", str(stream)),
            (f"{kill}        # 1.5 s after the request", killed),
            ("kubectl get lp -w        # the seconds are since the kill", watch.taken()),
            ("kubectl get events        # of the pipe", "\n".join(shown)),
            ("kubectl get pods -l languagepipes.io/pipe=smollm2", kubectl("get", "pods", "-l", selector.split(",")[0])),
        ]
    finally:
        watch.end()
        forward.terminate()
        forward.wait()
        kubectl("delete", "lp", "smollm2", "--wait=true")


RECORDINGS: dict[str, Callable[[], list[tuple[str, str]]]] = {"cluster": record, "recovery": record_recovery}


def main() -> int:
    began = "<!-- recorded by tests/e2e/pipes/transcript.py -->\n"
    ended = "<!-- end of the recording -->\n"
    for name in sys.argv[1:] or RECORDINGS:
        page = ROOT / f"docs/{name}.md"
        blocks = [f"```console\n$ {command}\n{output.rstrip()}\n```\n" for command, output in RECORDINGS[name]()]
        before, _, rest = page.read_text().partition(began)
        _, _, after = rest.partition(ended)
        page.write_text(f"{before}{began}\n" + "\n".join(blocks) + f"\n{ended}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
