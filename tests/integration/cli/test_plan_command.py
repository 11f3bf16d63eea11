"""`languagepipes plan FILE` as a user runs it: real weight files, a real node process, no server."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from languagepipes_api.plan import Plan
from languagepipes_operator.cli import main as cli

LAYERS = 6
HIDDEN = 16

PIPE = """
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {name: tiny}
spec:
  model: {source: "file://model", dtype: float32, maxContextLength: 128}
  endModel: {localLayers: 2}
  stages: {count: 2}
"""


def write_model(directory: Path) -> None:
    """A Llama of six layers: config.json, and a safetensors file of zeros."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 50,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "eos_token_id": 0,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    shapes = {"model.embed_tokens.weight": [50, HIDDEN], "model.norm.weight": [HIDDEN]}
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": [HIDDEN],
                "post_attention_layernorm": [HIDDEN],
                "self_attn.q_proj": [16, HIDDEN],
                "self_attn.k_proj": [8, HIDDEN],
                "self_attn.v_proj": [8, HIDDEN],
                "self_attn.o_proj": [HIDDEN, 16],
                "mlp.gate_proj": [32, HIDDEN],
                "mlp.up_proj": [32, HIDDEN],
                "mlp.down_proj": [HIDDEN, 32],
            }.items()
        }
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.fixture
def pipe_file(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    file = tmp_path / "pipe.yaml"
    file.write_text(PIPE)
    return file


def test_the_table_says_who_runs_which_layers_and_why(pipe_file: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "languagepipes_operator.cli", "plan", pipe_file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (finished.returncode, finished.stderr) == (0, "")
    rows = [line.split() for line in finished.stdout.splitlines()]
    assert [row[:3] for row in rows[2:5]] == [
        ["end-model", "*", "0-1"],
        ["stage-1", "2-3", "CPU"],
        ["stage-2", "4-5", "CPU"],
    ]
    assert "2 of 4 layers: no split over 2 has a heaviest stage below" in finished.stdout
    assert "KV for 16 sequences of 128 tokens" in finished.stdout


def test_json_is_the_plan_that_members_read(pipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(pipe_file), "-o", "json"]) == 0

    planned = Plan.from_json(json.loads(capsys.readouterr().out))
    layer = 2 * HIDDEN + 2 * 16 * HIDDEN + 2 * 8 * HIDDEN + 3 * 32 * HIDDEN
    assert planned.stages[0].weight_bytes == 2 * layer * 4
    assert planned.end_model.weight_bytes == (2 * layer + 50 * HIDDEN + HIDDEN) * 4


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("count: 2", "count: 0"), [], "{file} is refused:\n  spec.stages.count: 0 is less than 1"),
        (
            ("count: 2", "count: 5"),
            [],
            "TooManyStages: 5 stages, but 6 layers less 2 at the End Model leave 4: use at most 4 stages",
        ),
        (
            ("count: 2", "count: 2, device: GPU"),
            [],
            "NoSuchDevice: stage stage-1 asks for a GPU, but none of {node} has one: set device to CPU\n"
            "  (that is about this machine; `languagepipes plan --for cluster` knows nothing of nodes)",
        ),
        (
            ("file://model", "file://model"),
            ["--for", "cluster"],
            "{file} is refused:\n  spec.model.source: 'file://model': source must start with hf://, pvc:// or https:// "
            "(file:// is for `languagepipes up` alone)",
        ),
        (
            ("file://model", "pvc://claim/x"),
            ["--for", "cluster"],
            "spec.model.source: 'pvc://claim/x' can be read only inside the cluster that has the claim",
        ),
        (
            ('"file://model"', "'hf://a/b', tokenSecretRef: {name: hf, key: token}"),
            [],
            "spec.model.tokenSecretRef names the Secret hf, which only a cluster has: put the token into DIR/hf/token "
            "and pass --secrets-dir DIR",
        ),
    ],
)
def test_what_is_wrong_is_said_on_stderr_with_status_1(
    pipe_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    arguments: list[str],
    message: str,
) -> None:
    import platform

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pipe_file.write_text(PIPE.replace(*change))

    assert cli.main(["plan", str(pipe_file), *arguments]) == 1

    expected = message.format(file=pipe_file, node=platform.node()) if "{" in message else message
    assert capsys.readouterr().err == f"languagepipes plan: {expected}\n"


def test_a_model_that_is_not_there_is_named(pipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe_file.write_text(PIPE.replace("file://model", "file://nowhere"))

    assert cli.main(["plan", str(pipe_file)]) == 1

    assert str(pipe_file.parent / "nowhere") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file or directory"), (b"\xff\xfe", "not UTF-8 text: invalid start byte at byte 0")],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    file = tmp_path / "pipe.yaml"
    if content is not None:
        file.write_bytes(content)

    assert cli.main(["plan", str(file)]) == 1

    assert capsys.readouterr().err == f"languagepipes plan: {file}: {message}\n"


def test_up_runs_one_replica_only(pipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe_file.write_text(PIPE + "  replicas: 2\n")

    assert cli.main(["up", str(pipe_file)]) == 1

    assert "spec.replicas: 2 is more than 1: on one machine several rings" in capsys.readouterr().err


def test_what_only_a_cluster_has_is_ignored_with_one_line(pipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(pipe_file)]) == 0
    plain = capsys.readouterr()
    template = "template: {nodeSelector: {a: b}, resources: {limits: {memory: 1Mi}}}"
    pipe_file.write_text(
        PIPE.replace("stages: {", "stages: {" + template + ", ")
        + "  cache: {size: 1Gi}\n  networkPolicy: {enabled: false}\n  paused: true\n"
    )

    assert cli.main(["plan", str(pipe_file)]) == 0

    ignored = capsys.readouterr()
    assert ignored.out == plain.out
    assert ignored.err == (
        "languagepipes plan: ignored on this machine, for a cluster alone: "
        "spec.stages.template, spec.cache, spec.networkPolicy, spec.paused\n"
    )
    assert plain.err == ""
