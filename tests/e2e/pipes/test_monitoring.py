"""What a platform team sees: a real Prometheus, as the Prometheus operator configures it for the chart's monitors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster
from languagepipes_api.names import LABEL_ROLE, LABEL_STAGE, TELEMETRY_PORT
from support import dashboards
from support.installation import Installation
from support.kubectl import Kubectl, wait_for
from support.members import alive, pods, role
from support.monitoring import NAMESPACE, SCRAPE_SECONDS, Monitoring
from support.policy_evaluator import Pod, allowed
from support.serving import Client, wait_ready
from support.waiting import eventually

pytestmark = pytest.mark.kubernetes

# What Grafana's $__rate_interval would be for these monitors, with room for a scrape that a busy machine misses.
WINDOW = "1m"
# Queries that are answered with nothing where nothing of that kind has happened, as may be here: no call of the
# operator failed, no watch broke, nobody was refused on the ring, and this pipe does not speculate.
NOTHING_HAPPENED = {
    "fleet/API calls that failed, by status/A",
    "fleet/Watches begun anew/A",
    "pipe/Refused hellos, by reason/A",
    "pipe/Speculation: draft tokens accepted/A",
    "pipe/Speculation: tokens a draft/A",
    "pipe/Speculation: tokens a draft/B",
}


@pytest.fixture(scope="module")
def monitoring(
    admin: Kubectl, operator: Installation, our_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Monitoring]:
    made = Monitoring(admin, our_cluster, tmp_path_factory.mktemp("monitoring"))
    made.install_crds()
    # An alert that waits for ten minutes, and two that count an hour's losses, fire at once.
    thresholds = {"endpointNotReady": "0s", "ringEpochsPerHour": 0, "replaysPerHour": 0}
    chosen = [("--set", f"prometheusRule.thresholds.{name}={value}") for name, value in thresholds.items()]
    operator.install(*made.values, *(argument for pair in chosen for argument in pair))
    try:
        with made:
            yield made
    finally:
        operator.install()


def test_every_member_and_the_operator_are_scraped_with_their_labels(
    smollm2: Kubectl, operator: Installation, monitoring: Monitoring
) -> None:
    def up() -> set[tuple[str, str, str]]:
        found = [each["metric"] for each in monitoring.query(f'up{{namespace="{smollm2.namespace}"}} == 1')]
        assert all(each["pipe"] == "smollm2" for each in found)
        assert all(each.keys() >= {"replica"} for each in found if each["role"] != "store")
        return {(each["pod"], each["role"], each.get("stage", "")) for each in found}

    members = pods(smollm2)
    expected = {
        (each["name"], each["labels"][LABEL_ROLE], each["labels"].get(LABEL_STAGE, ""))
        for each in (pod["metadata"] for pod in members)
    }
    assert len(expected) == 5
    wait_for("all members scraped", lambda: up() == expected)
    leads = wait_for("the operator scraped", lambda: monitoring.query("languagepipes_operator_leader == 1"))
    assert [each["metric"]["namespace"] for each in leads] == [operator.kubectl.namespace]
    ready = f'languagepipes_operator_pipe_condition{{namespace="{smollm2.namespace}", condition="Ready"}}'
    assert [each["metric"]["pipe"] for each in monitoring.query(ready)] == ["smollm2"]

    # No plugin of this cluster enforces policies: what they say about these scrapes is evaluated.
    policies = smollm2.list("networkpolicy")
    scraper = Pod("prometheus", NAMESPACE, {"app.kubernetes.io/name": "prometheus"}, "198.51.100.1")
    for pod in members:
        metadata = pod["metadata"]
        member = Pod(role(pod), metadata["namespace"], metadata["labels"], pod["status"]["podIP"])
        assert allowed(policies, scraper, member, TELEMETRY_PORT), member


def test_an_alert_fires_by_its_cause_and_ends_with_it(smollm2: Kubectl, monitoring: Monitoring) -> None:
    wait_for("no alert", lambda: monitoring.firing(str(smollm2.namespace)) == set())
    (end_model,) = alive(smollm2, "end-model")
    smollm2("delete", "pod", end_model["metadata"]["name"], "--grace-period=0", "--force")
    wait_for("the alert", lambda: "LanguagePipesEndpointNotReady" in monitoring.firing(str(smollm2.namespace)))
    wait_ready(smollm2)
    wait_for("its end", lambda: "LanguagePipesEndpointNotReady" not in monitoring.firing(str(smollm2.namespace)))


def test_every_query_of_the_dashboards_has_data(
    smollm2: Kubectl, client: Client, operator: Installation, monitoring: Monitoring
) -> None:
    url = wait_ready(smollm2)["status"]["url"]

    def ask() -> None:
        for _ in range(3):
            assert "Paris" in "".join(client.ask(url, "What is the capital of France?"))

    ask()
    # A stage is lost: the ring ends, and the next one has other KV.
    (stage,) = [pod for pod in alive(smollm2, "stage") if role(pod) == "stage-2"]
    smollm2("delete", "pod", stage["metadata"]["name"], "--grace-period=0", "--force")
    wait_for("the alert on the ring", lambda: "LanguagePipesRingUnstable" in monitoring.firing(str(smollm2.namespace)))
    wait_ready(smollm2)
    ask()

    chosen = {
        "namespace": str(smollm2.namespace),
        "pipe": "smollm2",
        "operator": str(operator.kubectl.namespace),
        "__rate_interval": WINDOW,
    }
    for name, (series, label) in dashboards.series_of_variables(chosen).items():
        values = {each["metric"].get(label) for each in monitoring.query(series)}
        assert values - {None}, f"variable {name}: no {label} in {series}"

    queries = dashboards.queries(chosen)
    assert len(queries) > 50

    missing = {each.name: each.expression for each in queries}

    def all_seen() -> bool:
        """Not all at once: what is asked about the last minute comes and goes."""
        for name, expression in list(missing.items()):
            if monitoring.query(expression):
                del missing[name]
        return missing.keys() <= NOTHING_HAPPENED

    eventually(
        all_seen,
        what=lambda: "data for " + "\n".join(f"{name}: {missing[name]}" for name in missing.keys() - NOTHING_HAPPENED),
        every_seconds=SCRAPE_SECONDS,
    )
