"""Two servers (SmolLM2 as `languagepipes up` runs it, and the API before a scripted model), and clients that ask them.

A client's script is a program of its own, as the client's documentation has it. It finds the servers in CHAT_URL and
TOOLS_URL, where the model is called "demo", and prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from languagepipes_node.end_model.openai.app import create_app
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.bridge import EngineBridge
from languagepipes_node.end_model.openai.server import ApiServer
from languagepipes_node.end_model.requests import Submission
from support import chat_templates, client_packages
from support.paths import SMOLLM2
from support.scripted_engine import ScriptedEngine
from support.tool_model import codec_of
from support.up import Up, pipe

HERE = Path(__file__).parent
QUESTION = "What is the capital of France?"
CALL = 'Let me see.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
FORECAST = "It is sunny in Paris, as the tool says."

Run = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def chat_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """SmolLM2 in float32 over an End Model and two stages."""
    assert SMOLLM2.is_file(), f"{SMOLLM2} is not there: run `make model`"
    model = {"dtype": "float32", "maxContextLength": 2048}
    resource = pipe(f"file://{SMOLLM2}", name="demo", model=model, stages={"count": 2})
    with Up(resource, tmp_path_factory.mktemp("clients")) as up:
        yield up


@pytest.fixture(scope="session")
def chat_url(chat_up: Up) -> str:
    return f"http://127.0.0.1:{chat_up.port}"


@pytest.fixture(scope="session")
def tools_url() -> Iterator[str]:
    """The real API before a model that asks for the weather in Paris, and tells it once a tool has answered."""
    codec = codec_of(chat_templates.HERMES)
    bridge = EngineBridge(max_sequences=None)

    def script(submission: Submission) -> Iterator[int]:
        yield from codec.encode(FORECAST if "[tool]" in codec.decode(submission.prompt) else CALL)
        yield 2

    engine = ScriptedEngine(bridge.deliver, script, 0.0)
    app = create_app(
        engine=engine,
        bridge=bridge,
        text=codec,
        embedding_rows=codec.vocabulary_size,
        served_name="demo",
        max_context_length=8192,
        api_keys=ApiKeys(None),
    )
    server = ApiServer(app, "127.0.0.1:0", close_seconds=1)
    server.start()
    yield f"http://{server.address}"
    server.stop()
    engine.stop()


@pytest.fixture(scope="session")
def expected(chat_url: str) -> dict[str, Any]:
    """The likeliest answer to QUESTION, asked without a client: its text and usage."""
    body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 64}
    answer = httpx.post(f"{chat_url}/v1/chat/completions", json=body, timeout=60).raise_for_status().json()
    text = answer["choices"][0]["message"]["content"]
    assert "Paris" in text
    return {"text": text, "prompt_tokens": answer["usage"]["prompt_tokens"], "tokens": answer["usage"]["total_tokens"]}


@pytest.fixture
def environment(chat_url: str, tools_url: str, tmp_path: Path) -> dict[str, str]:
    """No key or address of this machine's reaches a client, nor does one of its services."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "CHAT_URL": chat_url,
        "TOOLS_URL": tools_url,
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches prices
    }


@pytest.fixture(scope="session")
def client_python() -> Path:
    return client_packages.python()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    return client_packages.node_modules()


@pytest.fixture
def python(client_python: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs a script of python/ to its end, with warnings shown."""
    return lambda name: _answer_of([client_python, HERE / "python" / name], environment, tmp_path)


@pytest.fixture
def evaluate(client_python: Path, environment: dict[str, str], tmp_path: Path) -> Callable[[Path, str], dict[str, Any]]:
    """Scores a task of evaluation/ with the weights in a directory and over the server."""

    def run(weights: Path, task: str) -> dict[str, Any]:
        for file in (HERE / "evaluation").glob(f"{task}.*"):
            shutil.copy(file, tmp_path)  # the paths in a task are relative to the working directory
        command = [client_python, HERE / "python" / "lm_evaluation.py", weights, tmp_path / f"{task}.yaml"]
        return _answer_of(command, environment, tmp_path, logs=True)

    return run


@pytest.fixture
def node(node_modules: Path, environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs a script of node/ to its end."""
    (tmp_path / "node_modules").symlink_to(node_modules)

    def run(name: str) -> dict[str, Any]:
        return _answer_of(["node", shutil.copy(HERE / "node" / name, tmp_path)], environment, tmp_path)

    return run


@pytest.fixture(scope="session")
def java_classes() -> str:
    return client_packages.java_classes()


@pytest.fixture
def java(java_classes: str, environment: dict[str, str], tmp_path: Path) -> Run:
    """Compiles a class of java/ (with the names of parameters, which tools are called by) and runs it to its end."""

    def run(name: str) -> dict[str, Any]:
        source = HERE / "java" / f"{name}.java"
        subprocess.run(["javac", "-parameters", "-cp", java_classes, "-d", tmp_path, source], check=True, timeout=120)
        quiet = "-Dslf4j.internal.verbosity=ERROR"  # it warns that no logger is configured
        return _answer_of(["java", "-cp", f"{tmp_path}:{java_classes}", quiet, name], environment, tmp_path)

    return run


def _answer_of(
    command: list[str | Path], environment: dict[str, str], folder: Path, *, logs: bool = False
) -> dict[str, Any]:
    """What a script printed. It must end well and complain of nothing, unless it logs what it does in any case."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout}"
    assert logs or not done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
