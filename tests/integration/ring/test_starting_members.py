"""Stages and End Models as the processes that pods run, before the ring is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from languagepipes_api.member_settings import MemberSettings
from languagepipes_node import member
from languagepipes_node.model.architecture import Architecture
from languagepipes_operator.certificates import authority as certificates
from support.models import ModelNamed, ParityModel
from support.ports import free_port
from support.thread_ring import plan_of


@pytest.mark.parametrize("role", ["stage", "end-model"])
def test_a_member_that_waits_for_the_store_says_so_and_ends_at_sigterm(
    role: str, model_named: ModelNamed, tmp_path: Path
) -> None:
    model: ParityModel = model_named("qwen3")
    architecture = Architecture.from_config(json.loads((model.path / "config.json").read_text()))
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(json.dumps(plan_of(architecture, [(1, architecture.layer_count)], dtype="float32").to_json()))
    telemetry = f"127.0.0.1:{free_port()}"
    settings = MemberSettings(
        role=role,  # type: ignore[arg-type]
        pipe="p",
        stage=1 if role == "stage" else 0,
        tls_dir=tmp_path / "tls",
        telemetry_listen=telemetry,
        plan_file=plan_file,
        store_address=f"127.0.0.1:{free_port()}",
        ring_listen="127.0.0.1:0",
        successor="127.0.0.1:1",
        api_listen="127.0.0.1:0",
    )
    ca = certificates.new_ca("default", "p")
    certificates.write_tls_dir(settings.tls_dir, ca, certificates.issue(ca, settings.identity))
    process = subprocess.Popen(
        [sys.executable, "-m", "languagepipes_node"],
        env={**os.environ, **settings.to_environment()},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "waiting for the weights store" in process.stderr.readline()
        with urllib.request.urlopen(f"http://{telemetry}/status", timeout=5) as response:
            assert json.load(response)["state"] == "waiting"
        with urllib.request.urlopen(f"http://{telemetry}/metrics", timeout=5) as response:
            metrics = response.read().decode()
        assert "languagepipes_epoch 0.0" in metrics
        assert ("languagepipes_ring_ready 0.0" in metrics) == (role == "end-model")
        assert "languagepipes_store" not in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=3) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_member_that_is_to_use_a_gpu_where_there_is_none_says_so() -> None:
    with pytest.raises(member.SettingsError, match=r"LANGUAGEPIPES_DEVICE: GPU, but torch .* finds none") as caught:
        member.torch_device("GPU")
    assert "set its device to CPU" in str(caught.value)
