"""The metrics that our code exports, with their labels, and which of them a PromQL expression names."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from languagepipes_node import metrics as node_metrics
from languagepipes_operator.metrics import Metrics
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

# Of targets: what the PodMonitor and the ServiceMonitor give to each series, docs/metrics.md.
OF_TARGETS = frozenset({"namespace", "pod", "pipe", "replica", "role", "stage", "job", "instance"})

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)?\s*\{([^{}]*)\}")
_MATCHED = re.compile(r"(\w+)\s*(?:!=|=~|!~|=)")
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_REPLACED = re.compile(r',\s*"(\w+)"\s*,\s*"[^"]*"\s*,\s*"(\w+)"\s*,\s*"[^"]*"\s*\)')
_WORD = re.compile(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_KEYWORDS = {"and", "or", "unless", "bool", "offset"}


@functools.cache
def exported() -> Mapping[str, frozenset[str]]:
    """Names of series as they are stored, with the labels that our code gives them."""
    found: dict[str, frozenset[str]] = {}
    for metric in [*vars(node_metrics).values(), *vars(Metrics()).values()]:
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        name = next(iter(metric.describe())).name
        labels = frozenset(metric._labelnames)
        if isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name + ("_total" if isinstance(metric, Counter) else "")] = labels
    return found


@functools.cache
def of_prometheus() -> Mapping[str, frozenset[str]]:
    """Series that Prometheus makes itself, and those of a process, which its client library shows of every member."""
    of_process = ProcessCollector(registry=CollectorRegistry()).collect()
    return {
        "up": frozenset(),
        "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
        **{sample.name: frozenset(sample.labels) for family in of_process for sample in family.samples},
    }


@dataclass(frozen=True)
class Named:
    """metrics: with the labels that selectors of each ask for. labels: those that are grouped or matched by."""

    metrics: Mapping[str, frozenset[str]]
    labels: frozenset[str]


def named_in(expression: str) -> Named:
    """What a PromQL expression names. It need not be valid: promtool says that better."""
    made, read = (frozenset(match[group] for match in _REPLACED.finditer(expression)) for group in (1, 2))
    text = _STRING.sub("", expression)
    metrics: dict[str, frozenset[str]] = {}
    for match in _SELECTOR.finditer(text):
        metric = match[1] or ""
        metrics[metric] = metrics.get(metric, frozenset()) | frozenset(_MATCHED.findall(match[2]))
    text = re.sub(r"\[[^\]]*\]", "", _SELECTOR.sub(" ", text))
    labels = {label for match in _GROUPED.finditer(text) for label in re.findall(r"\w+", match[1])}
    for word in set(_WORD.findall(_GROUPED.sub(" ", text))) - _KEYWORDS:
        metrics.setdefault(word, frozenset())
    return Named(metrics, frozenset(labels | read) - made)


def unknown_in(expression: str, *further: Mapping[str, Iterable[str]]) -> list[str]:
    """Metrics and labels of an expression that neither our code nor Prometheus has. further: recorded ones."""
    known = {
        name: frozenset(labels) for each in (exported(), of_prometheus(), *further) for name, labels in each.items()
    }
    found = named_in(expression)
    if not found.metrics:
        return ["no metric at all"]
    has = {metric: known[metric] | OF_TARGETS for metric in found.metrics if metric in known}
    return sorted(
        [
            *(f"no metric {metric!r}" for metric in found.metrics if metric not in has),
            *(
                f"no label {label!r} of {metric}"
                for metric, labels in found.metrics.items()
                for label in labels - has.get(metric, labels)
            ),
            *(f"no label {label!r}" for label in found.labels - frozenset().union(*has.values())),
        ]
    )
