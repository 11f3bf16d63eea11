"""The queries of the chart's Grafana dashboards, by Prometheus' own promtool: they are PromQL, and some answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
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


PIPE = 'namespace="team-a",pipe="qwen3"'
RING = f'{PIPE},replica="0"'
MEMBERS = (f'{RING},role="end-model"', *(f'{RING},role="stage",stage="{number}"' for number in (2, 10)))
FIRST_TOKEN = "languagepipes_time_to_first_token_seconds"
READY = f'languagepipes_operator_pipe_condition{{{PIPE},condition="Ready",reason="%s",pod="%s"}}'


@pytest.mark.parametrize(
    ("name", "series", "expected"),
    [
        (
            "pipe/Members, in the order of the ring/A",
            {f"languagepipes_step_seconds_sum{{{of}}}": f"0+{30 * place}x20" for place, of in enumerate(MEMBERS)},
            {'{stage="0"}': 0, '{stage="2"}': 0.5, '{stage="10"}': 1},
        ),
        (
            "pipe/Members, in the order of the ring/E",
            {
                **{f"languagepipes_kv_blocks_used{{{of}}}": "16x20" for of in MEMBERS},
                **{f"languagepipes_kv_blocks_total{{{of}}}": "64x20" for of in MEMBERS},
            },
            {f'{{stage="{number}"}}': 0.25 for number in (0, 2, 10)},
        ),
        (
            "pipe/Prefix cache: prompt tokens found/A",
            {
                f"languagepipes_prefix_cache_hit_tokens_total{{{MEMBERS[0]}}}": "0+10x20",
                f"languagepipes_prefix_cache_queried_tokens_total{{{MEMBERS[0]}}}": "0+40x20",
            },
            {"{}": 0.25},
        ),
        (
            "pipe/Prefix cache: prompt tokens found/A",
            {
                f"languagepipes_prefix_cache_hit_tokens_total{{{MEMBERS[0]}}}": "10x20",
                f"languagepipes_prefix_cache_queried_tokens_total{{{MEMBERS[0]}}}": "40x20",
            },
            {},
        ),
        (
            "pipe/First token, 95 %/A",
            {f'{FIRST_TOKEN}_bucket{{{MEMBERS[0]},le="{le}"}}': "7x20" for le in ("1", "+Inf")},
            {},
        ),
        # The old leader's last word, and another reason by the new one.
        (
            "fleet/Pipes not ready/A",
            {
                READY % ("Recovering", "a"): "0x20",
                READY % ("NodeLost", "b"): "0x20",
                READY.replace("qwen3", "llama") % ("Ready", "b"): "1x20",
            },
            {"{}": 1},
        ),
        ("fleet/Pipes not ready/A", {READY % ("Ready", "a"): "1x20"}, {"{}": 0}),
        ("fleet/Pipes not ready/A", {}, {}),
        (
            "fleet/Memory/A",
            {
                'process_resident_memory_bytes{namespace="lp-system",job="operator",instance="a",pod="a"}': "5x20",
                'languagepipes_operator_leader{namespace="lp-system",job="operator",instance="a",pod="a"}': "0x20",
                'process_resident_memory_bytes{namespace="lp-system",job="other",instance="a",pod="c"}': "7x20",
            },
            {'process_resident_memory_bytes{namespace="lp-system",job="operator",instance="a",pod="a"}': 5},
        ),
    ],
)
def test_queries_answer_what_their_panels_show(
    name: str, series: Mapping[str, str], expected: Mapping[str, float], tmp_path: Path
) -> None:
    (query,) = [query for query in queries() if query.name == name]
    asked = {
        "expr": query.expression,
        "eval_time": "10m",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in expected.items()],
    }
    given = [{"series": key, "values": values} for key, values in series.items()]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": given, "promql_expr_test": [asked]}]}))

    answer = promtool("test", "rules", file)

    assert answer.returncode == 0, answer.stdout + answer.stderr
