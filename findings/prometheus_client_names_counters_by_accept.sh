#!/usr/bin/env bash
# prometheus_client names a counter's family differently for different Accept headers, and adds a gauge to one answer
# only.
#
# Package    prometheus-client 0.26.0.
# Behaviour  For Counter("jobs") the text format (no Accept header, or text/plain) has the family jobs_total and a
#            second one, jobs_created. OpenMetrics (Accept: application/openmetrics-text) has one family, jobs, with
#            jobs_total and jobs_created as its samples. The names of the samples are equal.
# Seen       `# TYPE jobs_total counter` and `# TYPE jobs_created gauge` against `# TYPE jobs counter`.
# Source     in exposition.py, generate_latest appends _total to the names of counters and writes the _created samples
#            as gauges behind the family; openmetrics/exposition.py writes the family under its own name, as its
#            format asks.
# Effect     A test or a page that lists metrics by family is right for curl and wrong for Prometheus, which asks for
#            OpenMetrics, or the other way round.
# Instead    List samples, or ask with a fixed Accept header. `disable_created_metrics()` removes the _created
#            samples.
set -euo pipefail
unset PROMETHEUS_DISABLE_CREATED_SERIES
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prometheus-client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder

registry = CollectorRegistry()
Counter("jobs", "Jobs done", registry=registry).inc()


def families(accept: str) -> dict[str, str]:
    """Name to type of each family in the answer to a scrape with this Accept header."""
    encode, content_type = choose_encoder(accept)
    lines = [line.split() for line in encode(registry).decode().splitlines() if line.startswith("# TYPE")]
    found = {name: kind for _, _, name, kind in lines}
    print(f"Accept: {accept or '(none)'}\n  {content_type}\n  {found}")
    return found


text = families("")
assert text == families("text/plain"), "changed: text/plain is answered otherwise than no header"
assert text == {"jobs_total": "counter", "jobs_created": "gauge"}, "changed: other families in the text format"
assert families("application/openmetrics-text; version=1.0.0") == {"jobs": "counter"}, "changed: other families"
print("as found: the family is jobs_total in one format and jobs in the other, which has no jobs_created")
PYTHON
