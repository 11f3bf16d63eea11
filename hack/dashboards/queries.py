"""PromQL that panels share. Rates are over Grafana's $__rate_interval, which is never too short for the scrapes."""

from __future__ import annotations

_WINDOW = "[$__rate_interval]"


def total(metric: str, selector: str, *by: str) -> str:
    """The sum of a gauge."""
    return f"sum{_by(by)}({metric}{{{selector}}})"


def lowest(metric: str, selector: str, *by: str) -> str:
    return f"min{_by(by)}({metric}{{{selector}}})"


def highest(metric: str, selector: str, *by: str) -> str:
    return f"max{_by(by)}({metric}{{{selector}}})"


def rate(counter: str, selector: str, *by: str) -> str:
    """A second."""
    return f"sum{_by(by)}(rate({counter}{{{selector}}}{_WINDOW}))"


def increase(counter: str, selector: str, *by: str) -> str:
    """Within the time of one point."""
    return f"sum{_by(by)}(increase({counter}{{{selector}}}{_WINDOW}))"


def ratio(part: str, whole: str) -> str:
    """No value, instead of NaN, where the whole is zero."""
    return f"{part} / ({whole} > 0)"


def mean(histogram: str, selector: str, *by: str) -> str:
    return ratio(rate(f"{histogram}_sum", selector, *by), rate(f"{histogram}_count", selector, *by))


def quantile(share: float, histogram: str, selector: str, *by: str) -> str:
    """No value, instead of NaN, where nothing was observed."""
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', selector, *by, 'le')}) >= 0"


def buckets(histogram: str, selector: str) -> str:
    """For a heat map."""
    return increase(f"{histogram}_bucket", selector, "le")


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
