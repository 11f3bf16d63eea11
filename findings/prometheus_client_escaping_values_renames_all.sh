#!/usr/bin/env bash
# A scraper that asks prometheus_client for OpenMetrics with escaping=values gets every sample under a name that is not its family's.
#
# Package    prometheus-client 0.26.0.
# Behaviour  `escaping=values` is one of the schemes that Prometheus may be configured with (metric_name_escaping_scheme). It is for names that
#            the older format cannot hold: U__ and code points. In OpenMetrics, samples of ordinary names are escaped too
#            (http_requests_total becomes U__http__requests__total), while their HELP and TYPE lines are not. In the text format
#            ordinary names stay. To the library's own parser each family is empty, and each sample is a family of unknown type.
# Seen       `# TYPE http_requests counter` followed by `U__http__requests__total 1.0`.
# Source     openmetrics/exposition.py escapes a sample's name by the scheme without asking whether the older format could hold it, which it asks
#            for the family; exposition.py asks for both.
# Effect     With one word in Prometheus' configuration, every query, rule and dashboard on such a target finds nothing, and types are lost.
# Instead    Leave the scheme at underscores or allow-utf-8, or serve the text format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prometheus-client==0.26.0
PROMETHEUS_DISABLE_CREATED_SERIES=True "$folder/venv/bin/python" - <<'PYTHON'
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families

registry = CollectorRegistry()
Counter("http_requests", "Requests", registry=registry).inc()
OPENMETRICS, TEXT = "application/openmetrics-text; version=1.0.0", "text/plain; version=1.0.0"


def lines(accept: str) -> list[str]:
    """What a scrape with this Accept header is answered, without the lines HELP and EOF."""
    encode, _ = choose_encoder(accept)
    found = [line for line in encode(registry).decode().splitlines() if not line.startswith(("# HELP", "# EOF"))]
    print(f"Accept: {accept}\n  {found}")
    return found


plain = ["# TYPE http_requests counter", "http_requests_total 1.0"]
assert lines(f"{OPENMETRICS}; escaping=underscores") == plain, "changed: escaping=underscores"
assert lines(f"{OPENMETRICS}; escaping=allow-utf-8") == plain, "changed: escaping=allow-utf-8"
assert lines(f"{TEXT}; escaping=values")[-1] == "http_requests_total 1.0", "changed: the text format"
seen = lines(f"{OPENMETRICS}; escaping=values")
assert seen == [plain[0], "U__http__requests__total 1.0"], "changed: ordinary names in OpenMetrics"
encode, _ = choose_encoder(f"{OPENMETRICS}; escaping=values")
families = {each.name: (each.type, len(each.samples)) for each in text_string_to_metric_families(encode(registry).decode())}
print(f"  its own parser: {families}")
assert families == {"http_requests": ("counter", 0), "U__http__requests__total": ("unknown", 1)}, "changed: the parser"
print("as found: the family keeps its name, its sample does not")
PYTHON
