"""What `languagepipes up` refuses, and the words in which it does: status 1, one message, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.llama_files import write_tiny_llama
from support.ports import free_port
from support.up import Up, pipe
from support.waiting import eventually

pytestmark = pytest.mark.timeout(90)

PIPE = """\
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {name: tiny}
spec:
  model: {source: "file://model", dtype: float32, maxContextLength: 256}
  stages: {count: 2}
"""


@pytest.fixture
def up(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`up(yaml, *options)`: run the real command until it ends by itself; TMPDIR is `tmp_path/tmp`."""
    (tmp_path / "tmp").mkdir()

    def run(text: str, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "pipe.yaml"
        file.write_text(text)
        environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
        if path is not None:
            environment["PATH"] = path
        arguments = ["up", str(file), "--cache-dir", str(tmp_path / "cache"), *options]
        if "--port" not in options:
            arguments += ["--port", str(free_port())]
        result = subprocess.run(
            [sys.executable, "-m", "languagepipes_operator.cli", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
        assert list((tmp_path / "tmp").iterdir()) == []
        return result

    return run


def test_a_port_that_is_taken_is_refused_before_anything_starts(up: Callable[..., object], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = up(PIPE, "--port", str(port), "--log-dir", str(tmp_path / "logs"))
    assert result.returncode == 1
    assert result.stderr == (
        f"languagepipes up: port {port} on 127.0.0.1 is taken by another program: "
        "stop it, or choose another with --port\n"
    )
    assert result.stdout == ""
    assert list((tmp_path / "logs").iterdir()) == []  # no member ever ran


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("stages: {count: 2}", "stages: {count: 0}"), "spec.stages.count"),
        (("stages: {count: 2}", "stages: {coutn: 2}"), "spec.stages.coutn"),
        (('"file://model"', '"pvc://claim/model"'), "spec.model"),
        (("kind: LanguagePipe", "kind: LanguagePip"), "kind 'LanguagePip'"),
        (("{name: tiny}", "{name: Tiny}"), "metadata.name must be a DNS label"),
        (("{count: 2}", "{count: 2"), "not YAML: line"),
    ],
)
def test_a_wrong_resource_is_refused_with_its_field(
    up: Callable[..., object], change: tuple[str, str], message: str
) -> None:
    result = up(PIPE.replace(*change))
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_gpu_is_refused_where_there_is_none(up: Callable[..., object], tmp_path: Path) -> None:
    result = up(PIPE.replace("{count: 2}", "{count: 2, device: GPU}"), path=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == (
        "languagepipes up: spec.stages.device is GPU, but nvidia-smi finds no GPU on this machine: "
        "write CPU there, or install the driver\n"
    )


def test_no_replica_is_nothing_to_run(up: Callable[..., object]) -> None:
    result = up(PIPE + "  replicas: 0\n")
    assert result.returncode == 1
    assert result.stderr == (
        "languagepipes up: spec.replicas is 0, so there is nothing to run: set it to 1, or leave it out\n"
    )


def test_secrets_need_a_directory_that_stands_in_for_them(up: Callable[..., object], tmp_path: Path) -> None:
    text = PIPE + "  server: {apiKeysSecretRef: {name: keys}}\n"

    result = up(text)
    assert result.returncode == 1
    assert result.stderr == (
        "languagepipes up: spec.server.apiKeysSecretRef names the Secret keys, which only a cluster has: "
        "put it into files DIR/keys/KEY and pass --secrets-dir DIR\n"
    )

    result = up(text, "--secrets-dir", str(tmp_path / "secrets"))
    assert result.returncode == 1
    assert result.stderr == (
        f"languagepipes up: spec.server.apiKeysSecretRef: there is no file in {tmp_path}/secrets/keys: "
        "put one API key into each\n"
    )


def test_a_cache_directory_that_cannot_be_made_is_told(up: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    result = up(PIPE)
    assert result.returncode == 1
    assert result.stderr == (
        f"languagepipes up: --cache-dir {tmp_path}/cache cannot be made (File exists): choose another directory\n"
    )


def test_a_ready_file_needs_its_directory(up: Callable[..., object], tmp_path: Path) -> None:
    result = up(PIPE, "--ready-file", str(tmp_path / "nowhere/ready.json"))
    assert result.returncode == 1
    assert result.stderr == (
        f"languagepipes up: --ready-file {tmp_path}/nowhere/ready.json: there is no directory {tmp_path}/nowhere: "
        "make it first\n"
    )


def test_a_port_that_is_no_number_is_refused_by_the_parser(up: Callable[..., object]) -> None:
    result = up(PIPE, "--port", "80000")
    assert result.returncode == 2
    assert "argument --port: '80000' is no port; use 1 to 65535" in result.stderr


def test_a_source_that_is_not_there_ends_up_with_the_stores_reason(up: Callable[..., object], tmp_path: Path) -> None:
    result = up(PIPE)
    assert result.returncode == 1
    assert result.stderr.startswith("languagepipes up: ")
    assert f"{tmp_path}/model" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_split_that_does_not_fit_the_model_ends_up_with_the_numbers(
    up: Callable[..., object], tmp_path: Path
) -> None:
    write_tiny_llama(tmp_path / "model")
    result = up(PIPE.replace("{count: 2}", "{list: [{name: a, layers: 31}]}"))
    assert result.returncode == 1
    assert "31" in result.stderr
    assert "5 layers" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_tokenizer_that_cannot_be_read_ends_up_with_the_end_models_sentence_and_nothing_is_started_again(
    up: Callable[..., object], tmp_path: Path
) -> None:
    (write_tiny_llama(tmp_path / "model") / "tokenizer.json").write_text('{"model": 1}')
    result = up(PIPE, "--log-dir", str(tmp_path / "logs"))
    assert result.returncode == 1
    assert result.stderr.startswith("languagepipes up: end-model: InvalidSettings: tokenizer.json cannot be read: ")
    assert result.stderr.count("\n") == 1
    assert "starts again" not in result.stdout
    assert (tmp_path / "logs/end-model.log").read_text().count("InvalidSettings") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_called_that(up: Callable[..., object], tmp_path: Path, name: str) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0f' * 32}\nsize 269060552\n"
    (write_tiny_llama(tmp_path / "model") / name).write_text(pointer)
    result = up(PIPE)
    assert result.returncode == 1
    assert result.stderr == (
        f"languagepipes up: BrokenFile: file://{tmp_path}/model: {name} is a Git LFS pointer, {len(pointer)} bytes "
        "that stand for the file: run `git lfs pull` where it was cloned, and copy the file itself\n"
    )
    assert "end-model" not in result.stdout  # nothing was loaded


def test_a_member_that_never_becomes_ready_is_given_up_after_a_few_starts(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    up = Up(pipe(f"file://{tmp_path}/model", model={"maxContextLength": 256}, stages={"count": 1}), tmp_path)
    killed: set[int] = set()

    def kill_the_end_model() -> int | None:
        for pid in up.pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"languagepipes-node end-model":
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        return up.process.poll()

    up.start()
    try:
        status = eventually(kill_the_end_model, seconds=60, what="the end of `up`", every_seconds=0.1)
    finally:
        up.stop()

    assert status == 1, up.said()
    assert len(killed) == 6
    output = up.output.read_text()
    for pause in ("now", "in 0.5 s", "in 1.0 s", "in 2.0 s", "in 4.0 s"):
        assert output.count(f"starts again {pause}") == 1
    last = output.splitlines()[-1]
    assert last.startswith(
        "languagepipes up: end-model was started 6 times and never became ready; the last time killed by SIGKILL"
    )
    assert last.endswith(f"(the kernel does that where memory runs out): read {up.log_dir}/end-model.log")
