"""The operator's own metrics, as a Prometheus would read them from its Service."""

from __future__ import annotations

import time

import pytest
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.members import expiries
from support.metrics_page import metric
from support.serving import pipe, wait_ready

pytestmark = pytest.mark.kubernetes

PREFIX = "languagepipes_operator_"


def scraped(operator: Installation) -> str:
    (service,) = operator.kubectl.list("service", "app.kubernetes.io/component=operator")
    path = f"services/{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/proxy/metrics"
    return operator.kubectl("get", "--raw", f"/api/v1/namespaces/{operator.kubectl.namespace}/{path}")


def test_the_operator_counts_what_it_does(smollm2: Kubectl, operator: Installation) -> None:
    wait_ready(smollm2)
    before = scraped(operator)
    smollm2.apply(pipe("counted", replicas=0))
    try:
        wait_for("children", lambda: smollm2.list("deployment", "languagepipes.io/pipe=counted"))
        after = wait_for(
            "the new pipe among the pipes by phase",
            lambda: metric(now := scraped(operator), PREFIX + "pipes") > metric(before, PREFIX + "pipes") and now,
            timeout_seconds=30,
        )
        reconciles = PREFIX + "reconciles_total"
        assert metric(after, reconciles, outcome="done") > metric(before, reconciles, outcome="done")
        durations = PREFIX + "reconcile_seconds_count"
        assert metric(after, durations) > metric(before, durations)
        assert metric(after, PREFIX + "queue_depth") >= 0
        assert metric(after, PREFIX + "leader") == 1
        assert metric(after, PREFIX + "pipes", phase="Ready") >= 1
        created = {"verb": "create", "code": "201"}
        assert metric(after, PREFIX + "api_calls_total", kind="Deployment", **created) >= 1
        assert metric(after, PREFIX + "api_calls_total", kind="Secret", **created) >= 2
        questions = PREFIX + "store_questions_total"
        smollm2("scale", "lp/counted", "--replicas=1")
        wait_for(
            "a question to its store",
            lambda: metric(scraped(operator), questions) > metric(after, questions),
        )
    finally:
        smollm2("delete", "lp", "counted", "--wait=true", "--timeout=60s")
    wait_for(
        "the pipe gone from the pipes by phase",
        lambda: metric(scraped(operator), PREFIX + "pipes") == metric(before, PREFIX + "pipes"),
        timeout_seconds=30,
    )


def test_the_operator_tells_when_the_first_certificate_of_a_pipe_ends(smollm2: Kubectl, operator: Installation) -> None:
    wait_ready(smollm2)
    labels = {"namespace": str(smollm2.namespace), "pipe": "smollm2"}
    told = metric(scraped(operator), PREFIX + "certificate_expiry_seconds", **labels)
    first = min(expiries(smollm2).values()) - time.time()
    assert told == pytest.approx(first, abs=3600)
    assert told > 29 * 86400
