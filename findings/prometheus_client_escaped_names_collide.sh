#!/usr/bin/env bash
# Two metrics, or two labels of one metric, that a registry holds side by side have one name on prometheus_client's page.
#
# Package    prometheus-client 0.26.0.
# Behaviour  Gauge("a.b") and Gauge("a_b") are both registered, as different names. On a page for anybody who does not ask for
#            UTF-8 names (curl, an older Prometheus, `generate_latest(registry)`), dots become underscores: the family a_b
#            is there twice, with two values for one series. The same goes for label names: a sample has one label twice.
#            The library's own OpenMetrics parser refuses such a page. Nothing warns.
# Seen       `a_b 1.0` and `a_b 2.0` on one page; `c{x_y="1",x_y="2"} 3.0`.
# Source     the registry compares names as they were given; exposition.py and openmetrics/exposition.py escape each one by itself
#            while they write.
# Effect     Names taken from elsewhere (OpenTelemetry's have dots) meet names of one's own, and a scrape loses a
#            series or is refused whole, in dependence of the scraper's Accept header.
# Instead    Register names and labels with letters, digits and underscores alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prometheus-client==0.26.0
PROMETHEUS_DISABLE_CREATED_SERIES=True "$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def page(accept: str, registry: CollectorRegistry) -> str:
    return choose_encoder(accept)[0](registry).decode()


def samples(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def refusal(text: str) -> str | None:
    try:
        list(text_string_to_metric_families(text))
    except ValueError as error:
        return str(error)
    return None


alone = CollectorRegistry()
Gauge("a.b", "one", registry=alone).set(1)
assert refusal(page(OPENMETRICS, alone)) is None, "changed: one such name is refused too"

names = CollectorRegistry()
Gauge("a.b", "one", registry=names).set(1)
Gauge("a_b", "two", registry=names).set(2)
for accept in ("", OPENMETRICS):
    print(f"Accept: {accept or '(none)'}\n  {samples(page(accept, names))}")
    assert samples(page(accept, names)) == ["a_b 1.0", "a_b 2.0"], "changed: the names differ"
told = refusal(page(OPENMETRICS, names))
print(f"  its own parser: {told}")
assert told, "changed: its own parser reads the page"
utf8 = page("text/plain; version=1.0.0; escaping=allow-utf-8", names)
assert samples(utf8) == ['{"a.b"} 1.0', "a_b 2.0"], "changed: names differ otherwise where UTF-8 is asked for"

labels = CollectorRegistry()
Gauge("c", "three", ["x.y", "x_y"], registry=labels).labels("1", "2").set(3)
print(f"  {samples(page('', labels))}")
assert samples(page("", labels)) == ['c{x_y="1",x_y="2"} 3.0'], "changed: the labels differ"
print("as found: what the registry takes for two names is one on the page")
PYTHON
