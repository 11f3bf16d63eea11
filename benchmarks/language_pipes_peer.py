"""language-pipes 2.5.0, as PyPI has it, on the same model shape: two nodes on loopback.

It gets a virtual environment of its own, since it pins another transformers. The first node holds the end model and the
first half of the layers, the second the rest; they share an AES key, as its documentation advises. What it does not
have cannot be asked of it: there are no usage counts and no way to go on after an end token. It computes its last token
and never streams it; `tokens_of` counts it all the same.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from benchmarks.models import CACHE, ROOT, BenchmarkModel
from benchmarks.peer_programs import PeerMissing
from benchmarks.processes import Server, free_port
from benchmarks.streams import Round

VERSION = "2.5.0"
_ENVIRONMENT = CACHE / "peer-venv"
_HOME = CACHE / "peer"
# torch as ours; transformers comes with the version that language-pipes pins (5.14.1).
_REQUIREMENTS = (f"language-pipes=={VERSION}",)
_STAGGER_SECONDS = 0.05  # its listen backlog is five


def install() -> None:
    """Make its environment if it is not there. Raises PeerMissing."""
    python = _ENVIRONMENT / "bin" / "python"
    if _installed(python):
        return
    print(f"Installing language-pipes {VERSION} in {_ENVIRONMENT.relative_to(ROOT)}", file=sys.stderr, flush=True)
    import torch

    uv = Path(sys.executable).with_name("uv")
    torch_version = torch.__version__.partition("+")[0]
    for command in (
        [str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(_ENVIRONMENT)],
        [str(uv), "pip", "install", "--quiet", "--python", str(python), *_REQUIREMENTS, f"torch=={torch_version}"],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise PeerMissing(f"language-pipes could not be installed: {result.stderr.strip()[-500:]}")


def _installed(python: Path) -> bool:
    found = (python.parent.parent / "lib").glob(f"python*/site-packages/language_pipes-{VERSION}.dist-info")
    return python.exists() and any(found)


class Peer:
    """Two nodes with one model, served by the first. A context manager. Raises PeerMissing or ServerFailed.

    threads: OpenMP threads of each node.
    """

    stagger_seconds = _STAGGER_SECONDS

    def __init__(self, model: BenchmarkModel, *, threads: int, timeout_seconds: float = 180.0) -> None:
        install()
        self.model_id = f"bench/{model.name}"
        self.url = ""
        self.start_seconds = 0.0
        self._model = model
        self._threads = threads
        self._deadline = time.monotonic() + timeout_seconds
        self._nodes: list[Server] = []

    def __enter__(self) -> Peer:
        started = time.perf_counter()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            node.stop(grace_seconds=2.0)  # it does not end by itself on SIGTERM
        shutil.rmtree(_HOME, ignore_errors=True)

    def _start(self) -> None:
        layers = json.loads((self._model.directory / "config.json").read_text())["num_hidden_layers"]
        half = (layers + 1) // 2
        layer_gib = self._layer_bytes(layers) / 2**30
        job_port, first_port, second_port = free_port(), free_port(), free_port()
        common = {"network_key": secrets.token_hex(16), "network_ip": "127.0.0.1", "max_node_jobs": 64}
        # It loads floor(memory / layer size) layers, so half a layer more than enough is exact.
        first = self._node(
            "first",
            {
                **common,
                "node_id": "first",
                "peer_port": first_port,
                "job_port": job_port,
                "max_api_jobs": 64,
                "layer_models": [self._layers(memory=(half + 0.5) * layer_gib)],
                "end_models": [self.model_id],
            },
        )
        self._until(first, lambda: _logged(first, f"Layers 0-{half - 1} ") and _logged(first, "End Model for"))
        second = self._node(
            "second",
            {
                **common,
                "node_id": "second",
                "peer_port": second_port,
                "bootstrap_nodes": [{"address": "127.0.0.1", "port": first_port}],
                "layer_models": [self._layers(memory=2 * layers * layer_gib)],
            },
        )
        self._until(second, lambda: _logged(second, f"Layers {half}-{layers - 1} "))
        self.url = f"http://127.0.0.1:{job_port}/v1"
        self._until(first, self._lists_the_model)

    def _node(self, name: str, configuration: dict[str, object]) -> Server:
        home = _HOME / name
        data = home / "models" / self.model_id / "data"
        data.parent.mkdir(parents=True, exist_ok=True)
        if not data.is_symlink():
            data.symlink_to(self._model.directory)
        file = home / "node.toml"
        file.write_text(_toml(configuration))
        environment = {
            **os.environ,
            "HOME": str(home),
            "LP_APP_DIR": str(home / "app"),
            "LP_MODEL_DIR": str(home / "models"),
            "OMP_NUM_THREADS": str(self._threads),
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        command = [str(_ENVIRONMENT / "bin" / "language-pipes"), "--config", str(file), "run"]
        server = Server(command, log=home / "node.log", environment=environment, directory=home)
        self._nodes.append(server)
        return server

    def _layers(self, *, memory: float) -> dict[str, object]:
        return {"model_id": self.model_id, "device": "cpu", "memory": memory, "data_type": 16}

    def _layer_bytes(self, layers: int) -> int:
        from safetensors import safe_open

        total = 0
        for file in self._model.directory.glob("*.safetensors"):
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if ".layers.0." in name:
                        size = 2
                        for dimension in tensors.get_slice(name).get_shape():
                            size *= dimension
                        total += size
        return total

    def _lists_the_model(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/models", timeout=2.0)
            return answer.status_code == 200 and self.model_id in answer.text
        except httpx.HTTPError:
            return False

    def _until(self, node: Server, ready: Callable[[], bool]) -> None:
        left = max(1.0, self._deadline - time.monotonic())
        node.wait_until(ready, what="language-pipes", timeout_seconds=left)


def tokens_of(streams: Round) -> int:
    """Tokens that it computed for these streams: those that it sent, and the last one of each, which it keeps."""
    return sum(len(stream.token_times) + 1 for stream in streams.streams)


def _logged(node: Server, text: str) -> bool:
    return any(text in line and "loaded" in line for line in node.log.read_text(errors="replace").splitlines())


def _toml(values: dict[str, object]) -> str:
    """Flat TOML with arrays of strings or of tables; JSON's strings and numbers are TOML's."""
    lines, tables = [], []
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for table in value:
                tables += [f"[[{name}]]", *(f"{key} = {json.dumps(entry)}" for key, entry in table.items())]
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join([*lines, *tables]) + "\n"
