"""A member's or the operator's /metrics, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def metric(text: str, name: str, *, absent: float | None = None, **labels: str) -> float:
    """The sum of a metric's samples that have these labels, among others. With none: `absent`, or AssertionError."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    if not found and absent is not None:
        return absent
    assert found, f"no {name} with {labels} in:\n{text}"
    return sum(found)
