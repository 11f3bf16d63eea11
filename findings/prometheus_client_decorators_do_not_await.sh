#!/usr/bin/env bash
# The decorators of prometheus_client measure nothing of an `async def`: no time, no exception, nothing in progress.
#
# Package    prometheus_client 0.26.0.
# Behaviour  @histogram.time(), @counter.count_exceptions() and @gauge.track_inprogress() may be put on any function. On
#            a coroutine function each of them measures the making of the coroutine, which takes a microsecond, raises
#            nothing, and is over before its body begins. No error, no warning; the function still works. The same objects as
#            context managers within the function measure its body.
# Seen       0 exceptions of one raised; within the body 0 calls in progress, and the time has been taken already.
# Source     the __call__ of each context manager wraps the function in a plain function that enters itself, calls, and
#            leaves; nothing there awaits, or asks whether the result is awaitable.
# Effect     A latency histogram whose every observation lies in the lowest bucket, and a counter of errors that stays 0:
#            dashboards and alerts that look healthy for ever.
# Instead    `with histogram.time():` inside the function.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check prometheus_client==0.26.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


def measured(kind: str) -> tuple[float, float, float]:
    """One failing call: its exceptions that were counted, and from within its body, calls in progress and times taken."""
    registry = CollectorRegistry()
    seconds = Histogram("seconds", "…", registry=registry)
    failures = Counter("failures", "…", registry=registry)
    running = Gauge("running", "…", registry=registry)
    within: list[float] = []

    def body() -> None:
        within.extend((registry.get_sample_value("running"), registry.get_sample_value("seconds_count")))
        raise ValueError

    def decorated(function):
        return seconds.time()(failures.count_exceptions()(running.track_inprogress()(function)))

    @decorated
    def plain() -> None:
        body()

    @decorated
    async def coroutine() -> None:
        body()

    async def with_blocks() -> None:
        with seconds.time(), failures.count_exceptions(), running.track_inprogress():
            body()

    try:
        plain() if kind == "plain" else asyncio.run(coroutine() if kind == "async" else with_blocks())
    except ValueError:
        pass
    counted = registry.get_sample_value("failures_total")
    print(f"{kind:6} exceptions {counted:.0f}; within the body: in progress {within[0]:.0f}, times taken {within[1]:.0f}")
    assert registry.get_sample_value("seconds_count") == 1, "the call's time is not taken once"
    return counted, within[0], within[1]


assert measured("plain") == (1, 1, 0), "a plain function is not measured"
assert measured("blocks") == (1, 1, 0), "with blocks do not measure a coroutine's body"
failures, running, times = measured("async")
assert failures == 0, "changed: the exceptions of a coroutine are counted"
assert running == 0, "changed: a coroutine is in progress while it runs"
assert times == 1, "changed: the time of a coroutine is not taken before its body begins"
print("as found: on an async function the decorators measure the making of the coroutine")
PYTHON
