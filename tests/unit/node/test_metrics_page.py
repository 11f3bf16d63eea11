"""docs/metrics.md lists every metric of the node, and no other, with its type, whose it is, and what it means."""

from __future__ import annotations

import re

from languagepipes_node import metrics
from prometheus_client import Counter, Gauge, Histogram
from support.paths import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(languagepipes_\w+)` \| (\w+) \| ([\w ]+) \| (.+) \|$", re.MULTILINE)
DEFINED = {name: metric for name, metric in vars(metrics).items() if isinstance(metric, Counter | Gauge | Histogram)}


def name_of(metric: Counter | Gauge | Histogram) -> str:
    """As /metrics has it."""
    return next(iter(metric.describe())).name + ("_total" if isinstance(metric, Counter) else "")


def role_of(metric: object) -> str:
    if metric in metrics._OF_END_MODEL:
        return "End Model"
    return "store" if metric in metrics._OF_STORE else "every member"


def test_every_metric_stands_on_the_page_with_its_type_role_and_meaning() -> None:
    rows = {name: (kind, role, meaning) for name, kind, role, meaning in ROW.findall(PAGE)}

    assert rows.keys() == {name_of(metric) for metric in DEFINED.values()}
    for metric in DEFINED.values():
        described = next(iter(metric.describe()))
        kind, role, meaning = rows[name_of(metric)]
        assert (kind, role) == (described.type, role_of(metric)), name_of(metric)
        # The page names the label where the definition leaves it to the exposition.
        assert meaning.startswith(described.documentation.rstrip(".")), name_of(metric)


def test_what_a_lost_stage_costs_is_counted_by_four_metrics_without_labels() -> None:
    losses = (metrics.REPLAYS, metrics.RECOMPUTED_TOKENS, metrics.REQUESTS_WAITED, metrics.RING_DOWN_SECONDS)

    assert [name_of(metric) for metric in losses] == [
        "languagepipes_replays_total",
        "languagepipes_recomputed_tokens_total",
        "languagepipes_requests_waited_total",
        "languagepipes_ring_down_seconds_total",
    ]
    assert all(isinstance(metric, Counter) and not metric._labelnames for metric in losses)
