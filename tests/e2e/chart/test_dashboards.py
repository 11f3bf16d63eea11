"""The queries of the chart's Grafana dashboards are PromQL, by Prometheus' own promtool."""

from __future__ import annotations

from pathlib import Path

import yaml
from support.dashboards import queries, series_of_variables
from support.promtool import promtool

# What Grafana puts in place of variables of which several values may be chosen, two of them chosen.
CHOSEN = {"replica": "(0|1)", "operator": "(lp-system|ops)"}


def test_promtool_finds_every_query_valid(tmp_path: Path) -> None:
    expressions = {query.name: query.expression for query in (*queries(), *queries(CHOSEN))}
    expressions |= {name: f"count by ({label}) ({series})" for name, (series, label) in series_of_variables().items()}
    # As rules, since those are checked all at once; a rule's name has no character of a panel's title.
    rules = [
        {"record": f"query:{number}", "expr": expression, "labels": {"panel": name}}
        for number, (name, expression) in enumerate(expressions.items())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))

    answer = promtool("check", "rules", file)

    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"{len(rules)} rules found" in answer.stdout
