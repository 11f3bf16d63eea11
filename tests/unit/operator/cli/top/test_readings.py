"""What two readings of a member's metrics say, and how it is shown."""

from __future__ import annotations

import io
from typing import Any

import pytest
from languagepipes_node import metrics
from languagepipes_operator.cli.top.readings import Change, Member, Reading, samples_of
from languagepipes_operator.cli.top.view import detail, overview
from prometheus_client import REGISTRY, generate_latest
from rich.console import Console

PIPE: dict[str, Any] = {
    "metadata": {"namespace": "models", "name": "smol"},
    "spec": {"model": {"source": "hf://a/b"}, "replicas": 2},
    "status": {
        "phase": "Degraded",
        "readyReplicas": 1,
        "url": "http://smol.models.svc/v1",
        "stages": [{"name": "gpu", "layers": "1-20"}, {"name": "cpu", "layers": "21-28"}],
        "conditions": [
            {"type": "Ready", "status": "False", "reason": "OOMKilled", "message": "stage cpu: more memory"}
        ],
    },
}


def pod(role: str, *, replica: int = 0, stage: int | None = None, name: str = "", ready: bool = True) -> dict[str, Any]:
    labels = {"languagepipes.io/pipe": "smol", "languagepipes.io/role": role}
    if role != "store":
        labels["languagepipes.io/chain"] = str(replica)
    if stage is not None:
        labels |= {"languagepipes.io/stage": str(stage), "languagepipes.io/stage-name": name}
    return {
        "metadata": {
            "namespace": "models",
            "name": f"p{role}{stage}",
            "uid": f"{role}{replica}{stage}",
            "labels": labels,
        },
        "spec": {"nodeName": f"n{stage or 0}"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [{"restartCount": 2, "state": {"running": {}}}],
        },
    }


def page(**values: float) -> str:
    return "\n".join(f"{name} {value}" for name, value in values.items()) + "\n"


def member(at: float, of: dict[str, Any], **values: float) -> Member:
    return Member(of, at, samples_of(page(**values)))


def text_of(picture: Any) -> str:
    console = Console(file=io.StringIO(), width=220)
    console.print(picture)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_every_metric_that_is_shown_is_one_of_the_node() -> None:
    metrics.WIRE_BYTES.labels("sent").inc(0)
    samples = samples_of(generate_latest(REGISTRY).decode())

    found = {name for name, _ in samples}
    assert found >= {
        "languagepipes_epoch", "languagepipes_generated_tokens_total", "languagepipes_hop_seconds_sum",
        "languagepipes_hop_seconds_count", "languagepipes_kv_blocks_used", "languagepipes_kv_blocks_total",
        "languagepipes_replays_total", "languagepipes_ring_ready", "languagepipes_running_sequences",
        "languagepipes_step_seconds_sum", "languagepipes_step_seconds_count",
        "languagepipes_time_between_tokens_seconds_sum", "languagepipes_time_to_first_token_seconds_count",
        "languagepipes_waiting_sequences", "languagepipes_wire_bytes_total", "process_resident_memory_bytes",
    }  # fmt: skip
    assert not any(name.endswith("_bucket") for name in found)


def test_rates_are_over_the_time_between_and_none_where_a_member_began_anew() -> None:
    stage = pod("stage", stage=1, name="gpu")
    old = member(10.0, stage, languagepipes_step_seconds_sum=4.0, languagepipes_step_seconds_count=40.0)
    change = Change.since(Reading((PIPE,), (old,)))

    new = member(12.0, stage, languagepipes_step_seconds_sum=5.0, languagepipes_step_seconds_count=60.0)
    assert change.rate(new, "languagepipes_step_seconds_sum") == pytest.approx(0.5)
    assert change.mean(new, "languagepipes_step_seconds") == pytest.approx(0.05)
    assert change.rate(new, "languagepipes_wire_bytes_total", direction="sent") is None

    again = member(12.0, stage, languagepipes_step_seconds_sum=0.1, languagepipes_step_seconds_count=1.0)
    assert change.rate(again, "languagepipes_step_seconds_sum") is None
    idle = member(12.0, stage, languagepipes_step_seconds_sum=4.0, languagepipes_step_seconds_count=40.0)
    assert change.rate(idle, "languagepipes_step_seconds_sum") == 0
    assert change.mean(idle, "languagepipes_step_seconds") is None
    assert Change().rate(new, "languagepipes_step_seconds_sum") is None


def test_a_pipe_is_shown_ring_by_ring_in_the_order_of_its_members() -> None:
    end, gpu, cpu = pod("end-model"), pod("stage", stage=1, name="gpu"), pod("stage", stage=2, name="cpu", ready=False)

    def members(at: float, tokens: float, busy: float) -> tuple[Member, ...]:
        return (
            Member(pod("store"), at),
            Member(cpu, at, why="503 no answer"),
            member(at, gpu, languagepipes_step_seconds_sum=busy, languagepipes_step_seconds_count=tokens),
            member(
                at, end,
                languagepipes_ring_ready=1, languagepipes_generated_tokens_total=tokens, languagepipes_epoch=3,
                languagepipes_running_sequences=4, languagepipes_waiting_sequences=0,
                languagepipes_kv_blocks_used=5, languagepipes_kv_blocks_total=20,
            ),
        )  # fmt: skip

    before = Reading((PIPE,), members(0.0, 0.0, 0.0))
    reading = Reading((PIPE,), members(2.0, 30.0, 1.9))
    lines = text_of(detail(PIPE, reading.of(PIPE), Change.since(before))).splitlines()

    assert lines[0] == "models/smol  Degraded  replicas 1/2  hf://a/b  http://smol.models.svc/v1"
    assert lines[1] == "OOMKilled: stage cpu: more memory"
    assert "ring up" in lines[3]
    assert "tokens/s 15.0" in lines[3]
    assert "running 4   waiting 0   KV 25 %" in lines[3]
    assert "epoch 3" in lines[3]
    ring = [line.split() for line in lines[5:8]]
    assert ring[0][:5] == ["End", "Model", "n0", "both", "ends"]
    assert ring[1][:6] == ["gpu", "n1", "1-20", "Ready", "95", "%"]
    assert ring[2][:4] == ["cpu", "n2", "21-28", "Running;"]
    assert lines[-1].startswith("weights store on n0: Ready")


def test_what_is_not_known_is_a_dash_and_no_number() -> None:
    reading = Reading((PIPE,), (Member(pod("end-model"), 1.0), Member(pod("stage", stage=1, name="gpu"), 1.0)))
    shown = text_of(detail(PIPE, reading.of(PIPE), Change()))
    assert "no word of its ring" in shown
    assert "tokens/s –   running –" in shown
    assert "0 %" not in shown


def test_several_pipes_are_a_line_each() -> None:
    other = {"metadata": {"namespace": "models", "name": "another"}, "spec": {"model": {"source": "hf://c/d"}}}
    end = member(1.0, pod("end-model"), languagepipes_running_sequences=4, languagepipes_ring_ready=1)
    lines = text_of(overview(Reading((PIPE, other), (end,)), Change())).splitlines()
    assert lines[1].split()[:4] == ["models", "another", "Pending", "0/1"]
    assert lines[2].split()[:6] == ["models", "smol", "Degraded", "1/2", "–", "4"]
    assert lines[2].split()[-1] == "OOMKilled"


def test_a_container_that_waits_and_a_pod_that_goes_say_so() -> None:
    waits = pod("stage", stage=1)
    waits["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    goes = pod("stage", stage=1)
    goes["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    assert [Member(each, 0.0).state for each in (waits, goes)] == ["CrashLoopBackOff", "Terminating"]
    assert Member(waits, 0.0).restarts == 2
