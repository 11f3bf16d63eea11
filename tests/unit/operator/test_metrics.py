"""What /metrics of the operator says of pipes, and that docs/operator.md lists every metric of it."""

from __future__ import annotations

import re

from languagepipes_operator.kube.informer import ObjectKey
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.observe.pipes import Pipes
from support.metrics_page import metric
from support.paths import ROOT

NAME = "languagepipes_operator_pipe_condition"
ROW = re.compile(r"^\| `(\w+)` \|(.*?)\| .+ \|$", re.MULTILINE)


def pipe(name: str, **conditions: str) -> Manifest:
    """conditions: type=status/reason."""
    states = [(kind, *state.split("/")) for kind, state in conditions.items()]
    shown = [{"type": kind, "status": status, "reason": reason} for kind, status, reason in states]
    metadata = {"namespace": "team-a", "name": name, "uid": name, "resourceVersion": "1"}
    return {"metadata": metadata, **({"status": {"conditions": shown}} if shown else {})}


def pipes(*raws: Manifest) -> Pipes:
    return Pipes({ObjectKey("team-a", raw["metadata"]["name"]): [raw] for raw in raws}, lambda key: None)


def test_each_condition_of_each_pipe_is_shown_with_its_reason() -> None:
    found = pipes(
        pipe("qwen3", EndpointReady="True/EndpointReady", Degraded="False/AsAsked"),
        pipe("gemma", EndpointReady="False/Unschedulable", Ready="Unknown/StoreUnavailable"),
        pipe("new"),
    )
    metrics = Metrics()

    metrics.show_conditions(found.conditions())

    page = metrics.text().decode()
    of = {"namespace": "team-a", "pipe": "qwen3"}
    assert metric(page, NAME, **of, condition="EndpointReady", reason="EndpointReady") == 1
    assert metric(page, NAME, **of, condition="Degraded", reason="AsAsked") == 0
    assert metric(page, NAME, pipe="gemma", condition="EndpointReady", reason="Unschedulable") == 0
    assert metric(page, NAME, pipe="gemma", condition="Ready", reason="StoreUnavailable") == 0
    assert page.count(NAME + "{") == 4


def test_a_reason_that_passed_and_a_pipe_that_went_are_shown_no_more() -> None:
    metrics = Metrics()
    metrics.show_conditions(pipes(pipe("gone", Ready="True/Ready"), pipe("qwen3", Ready="False/RingDown")).conditions())

    metrics.show_conditions(pipes(pipe("qwen3", Ready="True/Ready")).conditions())

    page = metrics.text().decode()
    assert page.count(NAME + "{") == 1
    assert metric(page, NAME, pipe="qwen3", condition="Ready", reason="Ready") == 1


def test_the_page_lists_every_metric_of_the_operator_with_its_labels() -> None:
    section = (ROOT / "docs" / "operator.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    listed = {name: re.findall(r"`(\w+)`", labels) for name, labels in ROW.findall(section)}

    prefix = "languagepipes_operator_"
    defined = {
        next(iter(one.describe())).name.removeprefix(prefix) + ("_total" if one._type == "counter" else ""): [
            *one._labelnames
        ]
        for one in vars(Metrics()).values()
        if hasattr(one, "_labelnames")
    }
    assert listed == defined
