"""`languagepipes top` against an API server that refuses, lacks something, or is not there: one line, and the remedy.

What it shows of a real pipe: tests/e2e/pipes/test_top.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ports import free_port

LANGUAGEPIPES = Path(sys.executable).with_name("languagepipes")
PIPES = "/apis/languagepipes.io/v1alpha1/namespaces/{}/languagepipes"
PIPE = {"metadata": {"namespace": "team", "name": "smol"}, "spec": {"model": {"source": "hf://a/b"}}}
Answers = dict[str, tuple[int, Any]]


@pytest.fixture
def api_server() -> Iterator[Callable[[Answers], str]]:
    """Starts one that answers these paths, and any other with 404; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                missing = (404, {"kind": "Status", "message": f"no {self.path}"})
                status, body = answers.get(self.path.partition("?")[0], missing)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def top(folder: Path, server: str, *arguments: str, namespace: str = "team") -> subprocess.CompletedProcess[str]:
    kubeconfig = folder / "kubeconfig"
    context = {"cluster": "c", "user": "u", "namespace": namespace}
    contexts = [{"name": "here", "context": context}, {"name": "other", "context": {**context, "namespace": "another"}}]
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": contexts,
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    return subprocess.run(
        [LANGUAGEPIPES, "top", "--once", "--interval", "0.5", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"KUBECONFIG": str(kubeconfig), "PATH": "/usr/bin:/bin"},
    )


def status(message: str) -> dict[str, str]:
    return {"kind": "Status", "message": message}


REFUSALS: dict[str, tuple[Answers, tuple[str, ...], str]] = {
    "no pipe": ({PIPES.format("team"): (200, {"items": []})}, (), "there is no LanguagePipe in namespace team"),
    "no pipe of that name": ({}, ("absent",), f"{PIPES.format('team')}/absent: 404 no"),
    "no pipe of that name anywhere": (
        {"/apis/languagepipes.io/v1alpha1/languagepipes": (200, {"items": [PIPE]})},
        ("-A", "absent"),
        "there is no LanguagePipe absent in the cluster",
    ),
    "another namespace": ({}, ("-n", "theirs"), "has no LanguagePipes: install the chart"),
    "another context's namespace": (
        {PIPES.format("another"): (200, {"items": []})},
        ("--context", "other"),
        "there is no LanguagePipe in namespace another",
    ),
    "no such context": ({}, ("--context", "absent"), "no way to the API server"),
    "no permission": (
        {PIPES.format("team"): (403, status("languagepipes is forbidden: User jane cannot list"))},
        (),
        "not permitted: languagepipes is forbidden: User jane cannot list. `languagepipes top` reads languagepipes, "
        "pods and pods/proxy",
    ),
    "a token that is over": ({PIPES.format("team"): (401, status("Unauthorized"))}, (), "does not know you: Unauth"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_shown_is_said_in_one_line(
    case: str, api_server: Callable[[Answers], str], tmp_path: Path
) -> None:
    answers, arguments, words = REFUSALS[case]
    done = top(tmp_path, api_server(answers), *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("languagepipes top: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_api_server_that_is_away_is_named(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = top(tmp_path, address)
    assert done.returncode == 1
    assert f"{address} does not answer" in done.stderr


def test_a_member_without_metrics_is_shown_nevertheless(api_server: Callable[[Answers], str], tmp_path: Path) -> None:
    labels = {"languagepipes.io/pipe": "smol", "languagepipes.io/role": "end-model", "languagepipes.io/chain": "0"}
    pod = {
        "metadata": {"namespace": "team", "name": "end", "uid": "u", "labels": labels},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIP": "192.0.2.1"},
    }
    answers: Answers = {
        PIPES.format("team"): (200, {"items": [PIPE]}),
        "/api/v1/namespaces/team/pods": (200, {"items": [pod]}),
        "/api/v1/namespaces/team/pods/end:9090/proxy/metrics": (503, status("error trying to reach service")),
    }
    done = top(tmp_path, api_server(answers))
    assert (done.returncode, done.stderr) == (0, "")
    assert "team/smol  Pending  replicas 0/1  hf://a/b" in done.stdout
    assert "no word of its ring" in done.stdout
    assert "Running; no metrics" in done.stdout


@pytest.mark.parametrize("text", ["0", "x", "-1", "4000", "nan"])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    done = top(tmp_path, "http://127.0.0.1:9", f"--interval={text}")
    assert done.returncode == 2
    assert f"'{text}' is not 0.5 to 3600 seconds" in done.stderr
