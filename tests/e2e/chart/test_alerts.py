"""The chart's PrometheusRule, by Prometheus' own promtool: it is valid, and alerts fire when they must and only then.

Times of series are in minutes. What an alert says is compared word for word, as a person would read it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from languagepipes_api.status import ConditionType
from languagepipes_node.end_model.openai.errors import QueueFull
from support.exported_metrics import unknown_in
from support.helm_chart import NAMESPACE, OPERATOR, Manifest, render
from support.paths import ROOT
from support.promtool import promtool

RUNBOOKS = "https://docs.example/troubleshooting.md"
VALUES = {"prometheusRule": {"enabled": True, "runbookUrl": RUNBOOKS}}
PIPE = {"namespace": "team-a", "pipe": "qwen3"}
RING = {**PIPE, "replica": "0"}
DAY = 86_400


def groups(values: Mapping[str, Any] = VALUES) -> list[Manifest]:
    found: list[Manifest] = render(values).one("PrometheusRule")["spec"]["groups"]
    return found


@functools.cache
def rules(kind: str) -> dict[str, Manifest]:
    """By name, in the order in which they stand. kind: alert or record."""
    return {rule[kind]: rule for group in groups() for rule in group["rules"] if kind in rule}


def series(name: str, labels: Mapping[str, str], values: str) -> dict[str, str]:
    shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{name}{{{shown}}}", "values": values}


def condition(kind: str, reason: str, values: str) -> dict[str, str]:
    labels = {**PIPE, "condition": kind, "reason": reason, "pod": "operator-0"}
    return series("languagepipes_operator_pipe_condition", labels, values)


def histogram(name: str, labels: Mapping[str, str], counts: Mapping[str, int]) -> list[dict[str, str]]:
    """Buckets that grow by these counts a minute; counts: by upper bound, not cumulative."""
    total, found = 0, []
    for bound, count in counts.items():
        total += count
        found.append(series(f"{name}_bucket", {**labels, "le": bound}, f"0+{total}x120"))
    return found


def mean(name: str, labels: Mapping[str, str], seconds: float, *, count: int = 60) -> list[dict[str, str]]:
    """The sum and count of a histogram that sees `count` observations a minute, of so many seconds on average."""
    return [
        series(f"{name}_sum", labels, f"0+{seconds * count}x120"),
        series(f"{name}_count", labels, f"0+{count}x120"),
    ]


def end_model(name: str, values: str, **labels: str) -> dict[str, str]:
    return series(name, {**RING, "role": "end-model", "pod": "qwen3-end", **labels}, values)


def stage(number: int, seconds: float, *, count: int = 60) -> list[dict[str, str]]:
    labels = {**RING, "role": "stage", "stage": str(number), "pod": f"qwen3-{number}"}
    return mean("languagepipes_step_seconds", labels, seconds, count=count)


def leader(values: str, pod: str = "operator-0") -> dict[str, str]:
    labels = {"namespace": NAMESPACE, "job": f"{OPERATOR}-metrics", "pod": pod}
    return series("languagepipes_operator_leader", labels, values)


@dataclass(frozen=True)
class Case:
    """after: minutes. says: the summary and the description of the one alert that fires; None: none does."""

    alert: str
    name: str
    series: list[dict[str, str]]
    after: int
    labels: Mapping[str, str] = field(default_factory=dict)
    says: tuple[str, str] | None = None


REFUSED = {"route": "/v1/chat/completions", "outcome": "queue_full"}
FIRST, BETWEEN = "languagepipes_time_to_first_token_seconds", "languagepipes_time_between_tokens_seconds"
QUANTILE = {"quantile": "0.95"}
CERTIFICATE = "languagepipes_certificate_expiry_timestamp_seconds"
OF_OPERATOR = "languagepipes_operator_certificate_expiry_seconds"

# In a Prometheus each group has its own time; here an alert sees what was recorded at the same one.
GROUPS = ["languagepipes.records", "languagepipes.alerts"]

CASES = [
    Case(
        "LanguagePipesEndpointNotReady",
        "a pipe that answered answers no more",
        [condition("EndpointReady", "EndpointReady", "1x9 stale"), condition("EndpointReady", "NodeLost", "_x9 0x40")],
        21,
        PIPE,
        (
            "Pipe team-a/qwen3 accepts no requests.",
            "No replica answers, or accepts requests that wait: EndpointReady is False (NodeLost). "
            "kubectl -n team-a describe lp qwen3 shows why and the remedy.",
        ),
    ),
    Case(
        "LanguagePipesEndpointNotReady",
        "another reason does not begin the time anew",
        [condition("EndpointReady", "NodeLost", "0x9 stale"), condition("EndpointReady", "StagesStarting", "_x9 0x40")],
        12,
        PIPE,
        (
            "Pipe team-a/qwen3 accepts no requests.",
            "No replica answers, or accepts requests that wait: EndpointReady is False (StagesStarting). "
            "kubectl -n team-a describe lp qwen3 shows why and the remedy.",
        ),
    ),
    Case("LanguagePipesEndpointNotReady", "not yet", [condition("EndpointReady", "NodeLost", "0x40")], 9),
    Case("LanguagePipesEndpointNotReady", "scaled to 0", [condition("EndpointReady", "ScaledToZero", "0x40")], 30),
    Case("LanguagePipesEndpointNotReady", "idle", [condition("EndpointReady", "Idle", "1x40")], 30),
    Case("LanguagePipesEndpointNotReady", "another condition", [condition("Ready", "RollingOut", "0x40")], 30),
    Case(
        "LanguagePipesQueueFull",
        "requests are refused for minutes",
        [end_model("languagepipes_requests_total", "0x4 0+12x40", **REFUSED)],
        20,
        PIPE,
        (
            "Pipe team-a/qwen3 refuses requests, since its queue is full.",
            "60 requests of the last 5 minutes were answered with 429: all seats of all replicas were taken.",
        ),
    ),
    Case(
        "LanguagePipesQueueFull",
        "one burst that is over",
        [end_model("languagepipes_requests_total", "0x9 30x40", **REFUSED)],
        13,
    ),
    Case(
        "LanguagePipesQueueFull",
        "requests that are answered",
        [end_model("languagepipes_requests_total", "0+60x40", route="/v1/chat/completions", outcome="ok")],
        20,
    ),
    Case(
        "LanguagePipesFirstTokenSlow",
        "a tenth of requests waits half a minute",
        histogram(f"{FIRST}", {**RING, "role": "end-model"}, {"5": 90, "10": 0, "30": 10, "+Inf": 0}),
        25,
        {**PIPE, **QUANTILE},
        (
            "Pipe team-a/qwen3 misses its objective for the time to the first token.",
            "A share of 0.95 of requests has its first token within 20s; the objective is 10 s.",
        ),
    ),
    Case(
        "LanguagePipesFirstTokenSlow",
        "one in fifty does",
        histogram(f"{FIRST}", {**RING, "role": "end-model"}, {"5": 98, "10": 0, "30": 2, "+Inf": 0}),
        25,
    ),
    Case(
        "LanguagePipesFirstTokenSlow",
        "nobody asks",
        histogram(f"{FIRST}", {**RING, "role": "end-model"}, {"5": 0, "10": 0, "30": 0, "+Inf": 0}),
        25,
    ),
    Case(
        "LanguagePipesTokensSlow",
        "a tenth of tokens takes a second",
        histogram(f"{BETWEEN}", {**RING, "role": "end-model"}, {"0.5": 90, "1": 10, "+Inf": 0}),
        25,
        {**PIPE, **QUANTILE},
        (
            "Pipe team-a/qwen3 misses its objective for the time between tokens.",
            "A share of 0.95 of tokens follows the one before within 750ms; the objective is 0.5 s.",
        ),
    ),
    Case(
        "LanguagePipesTokensSlow",
        "tokens are fast",
        histogram(f"{BETWEEN}", {**RING, "role": "end-model"}, {"0.05": 97, "0.5": 3, "+Inf": 0}),
        25,
    ),
    Case(
        "LanguagePipesKVExhausted",
        "all blocks are used and sequences wait",
        [
            end_model("languagepipes_kv_blocks_used", "64x40"),
            end_model("languagepipes_kv_blocks_total", "64x40"),
            end_model("languagepipes_waiting_sequences", "3x40"),
        ],
        15,
        RING,
        (
            "Pipe team-a/qwen3, replica 0: KV blocks are used up, and sequences wait.",
            "100% of the KV blocks are in use, and admitted sequences wait for some.",
        ),
    ),
    Case(
        "LanguagePipesKVExhausted",
        "nobody waits",
        [
            end_model("languagepipes_kv_blocks_used", "64x40"),
            end_model("languagepipes_kv_blocks_total", "64x40"),
            end_model("languagepipes_waiting_sequences", "0x40"),
        ],
        15,
    ),
    Case(
        "LanguagePipesKVExhausted",
        "sequences wait for a slot, not for blocks",
        [
            end_model("languagepipes_kv_blocks_used", "16x40"),
            end_model("languagepipes_kv_blocks_total", "64x40"),
            end_model("languagepipes_waiting_sequences", "3x40"),
        ],
        15,
    ),
    Case(
        "LanguagePipesRingUnstable",
        "lost every five minutes",
        [end_model("languagepipes_ring_epochs_total", "0x4 1x4 2x4 3x4 4x4 5x4 6x4 7x4 8x4 9x4 10x20", reason="lost")],
        60,
        RING,
        (
            "Pipe team-a/qwen3, replica 0: the ring is lost again and again.",
            "The ring was joined 10 times in the last hour after it was lost. "
            "Each loss is a pause for all requests there.",
        ),
    ),
    Case(
        "LanguagePipesRingUnstable",
        "two losses, and End Models that start",
        [
            end_model("languagepipes_ring_epochs_total", "0x9 2x60", reason="lost"),
            end_model("languagepipes_ring_epochs_total", "0+1x70", reason="start"),
        ],
        60,
    ),
    Case(
        "LanguagePipesReplays",
        "a sequence a minute",
        [end_model("languagepipes_replays_total", "0+1x90")],
        60,
        RING,
        (
            "Pipe team-a/qwen3, replica 0: many sequences are computed again.",
            "60 sequences of the last hour were computed again, since a stage had lost their KV.",
        ),
    ),
    Case(
        "LanguagePipesReplays",
        "one loss with a dozen sequences",
        [end_model("languagepipes_replays_total", "0x9 12x90")],
        60,
    ),
    Case(
        "LanguagePipesStageSlow",
        "the second of two stages takes three times as long",
        [*stage(1, 0.01), *stage(2, 0.03)],
        30,
        {**RING, "stage": "2"},
        (
            "Pipe team-a/qwen3, replica 0: stage 2 holds up the ring.",
            "Stage 2 computes 30ms for a frame, more than 2 times as long as the other stages on average.",
        ),
    ),
    Case("LanguagePipesStageSlow", "stages of like speed", [*stage(1, 0.01), *stage(2, 0.015), *stage(3, 0.012)], 30),
    Case("LanguagePipesStageSlow", "one stage alone", stage(1, 0.5), 30),
    Case("LanguagePipesStageSlow", "stages that have nothing to do", [*stage(1, 0, count=0), *stage(2, 0.03)], 30),
    Case(
        "LanguagePipesHopSlow",
        "50 ms a hop",
        mean("languagepipes_hop_seconds", {**RING, "role": "end-model"}, 0.05),
        30,
        RING,
        (
            "Pipe team-a/qwen3, replica 0: the way between members is slow.",
            "A hop takes 50ms on average, above 0.02 s. Each token takes one hop for each member.",
        ),
    ),
    Case(
        "LanguagePipesHopSlow",
        "1 ms a hop",
        mean("languagepipes_hop_seconds", {**RING, "role": "end-model"}, 0.001),
        30,
    ),
    Case(
        "LanguagePipesCertificateExpiring",
        "one member's ends in ten days",
        [
            series(CERTIFICATE, {**RING, "role": "stage", "stage": "1"}, f"{10 * DAY + 1200}x40"),
            series(CERTIFICATE, {**RING, "role": "end-model"}, f"{60 * DAY}x40"),
            series(OF_OPERATOR, {**PIPE, "pod": "operator-0"}, f"{60 * DAY}x40"),
        ],
        20,
        PIPE,
        (
            "Pipe team-a/qwen3: a certificate is about to expire.",
            "The first certificate of a member ends in 10d 0h 0m 0s, and was not renewed in time. "
            "When it ends, members refuse each other.",
        ),
    ),
    Case(
        "LanguagePipesCertificateExpiring",
        "members cannot be scraped, and the operator knows of one",
        [series(OF_OPERATOR, {**PIPE, "pod": "operator-0"}, f"{DAY}x40")],
        20,
        PIPE,
        (
            "Pipe team-a/qwen3: a certificate is about to expire.",
            "The first certificate of a member ends in 1d 0h 0m 0s, and was not renewed in time. "
            "When it ends, members refuse each other.",
        ),
    ),
    Case(
        "LanguagePipesCertificateExpiring",
        "renewed in time",
        [
            series(CERTIFICATE, {**RING, "role": "end-model"}, f"{DAY}x9 {90 * DAY}x40"),
            series(OF_OPERATOR, {**PIPE, "pod": "operator-0"}, f"{30 * DAY}x40"),
        ],
        20,
    ),
    Case(
        "LanguagePipesStoreStuck",
        "nothing is fetched",
        [
            condition("WeightsAvailable", "SourceUnreachable", "0x90"),
            series("languagepipes_store_fetched_bytes", {**PIPE, "role": "store"}, "4096x90"),
        ],
        45,
        PIPE,
        (
            "Pipe team-a/qwen3: the weights store makes no progress.",
            "The weights are not available (SourceUnreachable), and no byte was fetched in 10 minutes. "
            "What runs goes on; a member that starts has no weights.",
        ),
    ),
    Case(
        "LanguagePipesStoreStuck",
        "there is no store to scrape",
        [condition("WeightsAvailable", "Unschedulable", "0x90")],
        45,
        PIPE,
        (
            "Pipe team-a/qwen3: the weights store makes no progress.",
            "The weights are not available (Unschedulable), and no byte was fetched in 10 minutes. "
            "What runs goes on; a member that starts has no weights.",
        ),
    ),
    Case(
        "LanguagePipesStoreStuck",
        "a large model is being fetched",
        [
            condition("WeightsAvailable", "Downloading", "0x90"),
            series("languagepipes_store_fetched_bytes", {**PIPE, "role": "store"}, "0+1000000x90"),
        ],
        80,
    ),
    Case(
        "LanguagePipesStoreStuck",
        "the weights are there",
        [
            condition("WeightsAvailable", "WeightsAvailable", "1x90"),
            series("languagepipes_store_fetched_bytes", {**PIPE, "role": "store"}, "4096x90"),
        ],
        80,
    ),
    Case(
        "LanguagePipesOperatorNotLeading",
        "two pods, and none gets the Lease",
        [leader("0x40"), leader("0x40", "operator-1")],
        10,
        {"namespace": NAMESPACE},
        (
            f"No operator in {NAMESPACE} holds the Lease.",
            "Pipes that run go on; nothing is repaired, renewed or changed. "
            "Either no operator pod runs or is scraped, or none gets the Lease.",
        ),
    ),
    Case(
        "LanguagePipesOperatorNotLeading",
        "no pod is there to be scraped",
        [],
        10,
        {"namespace": NAMESPACE, "job": f"{OPERATOR}-metrics"},
        (
            f"No operator in {NAMESPACE} holds the Lease.",
            "Pipes that run go on; nothing is repaired, renewed or changed. "
            "Either no operator pod runs or is scraped, or none gets the Lease.",
        ),
    ),
    Case("LanguagePipesOperatorNotLeading", "a standby", [leader("1x40"), leader("0x40", "operator-1")], 10),
    Case("LanguagePipesOperatorNotLeading", "a change", [leader("1x9 stale"), leader("0x9 0 1x40", "operator-1")], 20),
]


def promtool_test(case: Case) -> dict[str, Any]:
    """As promtool reads it: https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/"""
    expected = []
    if case.says is not None:
        summary, description = case.says
        expected.append(
            {
                "exp_labels": {"severity": rules("alert")[case.alert]["labels"]["severity"], **case.labels},
                "exp_annotations": {
                    "summary": summary,
                    "description": description,
                    "runbook_url": f"{RUNBOOKS}#{case.alert.lower()}",
                },
            }
        )
    asked = {"eval_time": f"{case.after}m", "alertname": case.alert, "exp_alerts": expected}
    return {"name": case.name, "interval": "1m", "input_series": case.series, "alert_rule_test": [asked]}


@pytest.fixture(scope="module")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Prometheus operator hands to Prometheus."""
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups()}))
    return path


def test_promtool_finds_the_rules_valid(rule_file: Path) -> None:
    answer = promtool("check", "rules", "--lint=all", "--lint-fatal", rule_file)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{len(rules('alert')) + len(rules('record'))} rules found" in answer.stdout


def test_there_are_cases_for_every_alert() -> None:
    assert {case.alert for case in CASES} == rules("alert").keys()


@pytest.mark.parametrize("alert", sorted({case.alert for case in CASES}))
def test_each_alert_fires_when_it_must_and_only_then(alert: str, rule_file: Path, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert {case.says is None for case in cases} == {True, False}, "one that fires, one that does not"
    file = tmp_path / "test.yaml"
    tests = [promtool_test(case) for case in cases]
    rules = {"rule_files": [str(rule_file)], "evaluation_interval": "1m", "group_eval_order": GROUPS}
    file.write_text(yaml.safe_dump({**rules, "tests": tests}))

    answer = promtool("test", "rules", file)

    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_metric_and_label_in_the_rules_is_one_that_our_code_exports() -> None:
    recorded = {name: rule.get("labels", {}).keys() for name, rule in rules("record").items()}
    for name, rule in {**rules("record"), **rules("alert")}.items():
        assert unknown_in(rule["expr"], recorded) == [], name
    text = str(groups())
    assert set(re.findall(r'outcome="(\w+)"', text)) == {QueueFull.outcome}
    assert set(re.findall(r"condition=[\"']+(\w+)", text)) <= set(get_args(ConditionType))


def test_every_alert_has_a_runbook_on_the_page() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    section = page.split("\n## Alerts\n")[1].split("\n## ")[0]
    headings = re.findall(r"^### (\w+)$", section, re.MULTILINE)

    assert headings == list(rules("alert"))
    for alert, rule in rules("alert").items():
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOKS}#{alert.lower()}"


def test_thresholds_come_from_the_values() -> None:
    thresholds = {
        "endpointNotReady": "7m", "quantile": 0.99, "timeToFirstTokenSeconds": 3.5, "timeBetweenTokensSeconds": 0.125,
        "kvUsedRatio": 0.8, "ringEpochsPerHour": 17, "replaysPerHour": 19, "slowestStageRatio": 3.25,
        "hopSeconds": 0.007, "certificateDays": 21, "storeStuck": "23m",
    }  # fmt: skip
    text = str(groups({"prometheusRule": {"enabled": True, "thresholds": thresholds}}))

    missing = [name for name, value in thresholds.items() if not re.search(rf"(?<![\w.]){value}(?![\w.])", text)]
    assert missing == []
