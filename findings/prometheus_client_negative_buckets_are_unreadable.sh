#!/usr/bin/env bash
# A histogram with a bucket below zero makes prometheus_client's OpenMetrics page one that its own parser refuses.
#
# Package    prometheus-client 0.26.0.
# Behaviour  Where the lowest bound is negative, the histogram has no _sum (it could fall, so it would be no counter), but has its _count.
#            OpenMetrics 1.0 has the two together or neither, and the library's parser raises ValueError for the whole page. The text format
#            and its parser take it.
# Seen       `_sum/_gsum must be present if _count is present`.
# Source     metrics.py leaves out the _sum of such a histogram and nothing else; openmetrics/parser.py checks one against the other.
# Effect     One histogram of differences (clock offsets, errors of an estimate) takes all other metrics of the page away from a reader that
#            is made with the same library: an exporter that joins pages, a test, an agent.
# Instead    Two histograms, of what is above and what is below zero, or read the text format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prometheus-client==0.26.0
PROMETHEUS_DISABLE_CREATED_SERIES=True "$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_page
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text


def registry_with(*bounds: float) -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("other", "Another", registry=registry).set(1)
    Histogram("offset_seconds", "Offsets", buckets=bounds, registry=registry).observe(0.5)
    return registry


def names(registry: CollectorRegistry) -> set[str]:
    return {sample.name for family in read_openmetrics(openmetrics_page(registry).decode()) for sample in family.samples}


positive, negative = registry_with(0, 1), registry_with(-1, 0, 1)
assert {"other", "offset_seconds_count", "offset_seconds_sum"} < names(positive), "changed: bounds from zero on"
page = openmetrics_page(negative).decode()
assert "offset_seconds_count 1.0" in page and "_sum" not in page, "changed: another set of samples"
text = {sample.name for family in read_text(generate_latest(negative).decode()) for sample in family.samples}
assert text == {"other", "offset_seconds_bucket", "offset_seconds_count"}, "changed: the text format"
try:
    names(negative)
except ValueError as error:
    print(f"a bound below zero: {error}")
    assert "_sum" in str(error) and "_count" in str(error), "changed: another error"
else:
    raise SystemExit("changed: its own parser reads the page")
print("as found: the whole page is refused for a _count without a _sum")
PYTHON
