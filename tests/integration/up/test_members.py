"""Every member is told exactly what a pod would be told, and no more than it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.plan import EndModelAssignment, LayerRange, Plan, StageAssignment
from languagepipes_api.spec import LanguagePipe, load_pipe
from languagepipes_operator.cli.gpus import Gpu
from languagepipes_operator.cli.up import members
from languagepipes_operator.cli.up.addresses import HeldPorts

PIPE = """\
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {name: tiny}
spec:
  model: {source: "file:///models/tiny", servedName: tiny-llama}
  stages: {count: 3}
  recovery: {maxWaitSeconds: 20, maxReplays: 2}
"""


def stage(index: int, start: int, stop: int, device: str = "CPU") -> StageAssignment:
    return StageAssignment(
        name=f"stage-{index}",
        layers=LayerRange(start, stop),
        device=device,  # type: ignore[arg-type]
        weight_bytes=1,
        step_bytes=1,
        kv_bytes=1,
        overhead_bytes=1,
        memory_budget_bytes=None,
        reason="",
    )


def plan(*stages: StageAssignment, tail: LayerRange) -> Plan:
    return Plan(
        model_revision="abc",
        family="llama",
        layer_count=10,
        hidden_size=8,
        dtype="float32",
        end_model=EndModelAssignment(LayerRange(0, 1), tail, "CPU", 1, 1, 1, 1, ""),
        stages=stages,
        max_context_length=64,
        kv_block_tokens=64,
        kv_blocks=1,
        kv_limited_by="stage-1",
        max_sequences=1,
        frame_tokens=64,
        frames_in_flight=2,
        slowest_station="end-model",
    )


PLAN = plan(stage(1, 1, 5), stage(2, 5, 6, "GPU"), stage(3, 6, 8, "GPU"), tail=LayerRange(8, 10))


@pytest.fixture
def pipe() -> LanguagePipe:
    return load_pipe(PIPE, local=True)


@pytest.fixture
def member_processes(pipe: LanguagePipe) -> Iterator[list[members.MemberProcess]]:
    with HeldPorts() as ports:
        identities = members.member_process_identities(pipe, PLAN)
        yield members.member_processes(
            pipe,
            PLAN,
            ports=ports,
            api="127.0.0.1:8000",
            store="127.0.0.1:7443",
            plan_file=Path("/run/plan.json"),
            tls_dirs={identity: Path("/run/tls") / str(index) for index, identity in enumerate(identities)},
            api_keys_dir=None,
        )


def test_each_member_process_sends_to_the_next_and_the_last_stage_to_the_end_model(
    member_processes: list[members.MemberProcess],
) -> None:
    listening = [member_process.settings.ring_listen for member_process in member_processes]
    assert [member_process.settings.successor for member_process in member_processes] == [*listening[1:], listening[0]]
    assert len({*listening, *(member_process.settings.telemetry_listen for member_process in member_processes)}) == 8


def test_a_member_process_holds_the_certificate_of_its_own_identity(
    pipe: LanguagePipe, member_processes: list[members.MemberProcess]
) -> None:
    assert [
        member_process.settings.identity for member_process in member_processes
    ] == members.member_process_identities(pipe, PLAN)
    assert [member_process.settings.tls_dir.name for member_process in member_processes] == ["0", "1", "2", "3"]


def test_work_is_told_inclusively(member_processes: list[members.MemberProcess]) -> None:
    assert [member_process.work for member_process in member_processes] == [
        "layers 1-4",
        "layer 5",
        "layers 6-7",
        "embedding, layer 0, layers 8-9, head",
    ]


def test_a_member_reads_back_the_settings_that_it_was_given(member_processes: list[members.MemberProcess]) -> None:
    for member_process in member_processes:
        command = members.command(
            member_process.name, member_process.settings, directory=Path("/run"), log_dir=Path("/run")
        )
        told = member_process.settings.model_copy(update={"termination_log": command.termination_log})
        assert MemberSettings.from_environment(command.environment) == told


def test_how_long_requests_wait_and_how_often_they_are_replayed_is_told_to_the_end_model(
    member_processes: list[members.MemberProcess],
) -> None:
    *stages, end_model = [member_process.settings.to_environment() for member_process in member_processes]
    assert (end_model["LANGUAGEPIPES_MAX_WAIT_SECONDS"], end_model["LANGUAGEPIPES_MAX_REPLAYS"]) == ("20.0", "2")
    assert not any("LANGUAGEPIPES_MAX_WAIT_SECONDS" in environment for environment in stages)


def test_settings_of_the_users_own_shell_reach_no_member_and_the_hub_token_only_the_store(
    member_processes: list[members.MemberProcess],
) -> None:
    shell = {"PATH": "/bin", "LANGUAGEPIPES_ROLE": "store", "LANGUAGEPIPES_WRONG": "1", "HF_TOKEN": "hf_secret"}
    member_process = member_processes[0]
    places = {"directory": Path("/run"), "log_dir": Path("/run"), "environment": shell}
    stage = members.command(member_process.name, member_process.settings, **places).environment
    store = members.command("store", member_process.settings, **places).environment
    assert stage["LANGUAGEPIPES_ROLE"] == "stage"
    assert "LANGUAGEPIPES_WRONG" not in stage
    assert "HF_TOKEN" not in stage
    assert store["HF_TOKEN"] == "hf_secret"


def test_gpus_are_dealt_in_turn_and_hidden_from_the_others(member_processes: list[members.MemberProcess]) -> None:
    one, two = Gpu(0, "GPU-one", 1), Gpu(1, "GPU-two", 1)
    assert members.share_gpus(member_processes, [one, two]) == {"stage-2": one, "stage-3": two}
    assert members.share_gpus(member_processes, [one]) == {"stage-2": one, "stage-3": one}
    seen = [
        members.command(
            member_process.name,
            member_process.settings,
            directory=Path("/run"),
            log_dir=Path("/run"),
            gpu=gpu,
            environment={},
        ).environment["CUDA_VISIBLE_DEVICES"]
        for member_process, gpu in zip(member_processes, [None, one, two, None], strict=True)
    ]
    assert seen == ["", "GPU-one", "GPU-two", ""]
