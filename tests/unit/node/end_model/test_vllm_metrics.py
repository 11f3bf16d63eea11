"""vLLM's names show what our own metrics do, and docs/metrics.md lists them all."""

from __future__ import annotations

import re

import pytest
from languagepipes_node import metrics
from languagepipes_node.end_model.vllm_metrics import VllmMetrics
from languagepipes_node.health import accepted_format
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import choose_encoder
from support.paths import ROOT

ROW = re.compile(r"^\| `(vllm:\w+)` \| ", re.MULTILINE)


def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(VllmMetrics(served_name="qwen3", block_tokens=16))
    return found


def own(metric: object, suffix: str = "") -> float:
    (family,) = metric.collect()  # type: ignore[attr-defined]
    return next(float(sample.value) for sample in family.samples if sample.name.endswith(suffix))


def test_each_shows_the_number_of_its_own_metric() -> None:
    metrics.RUNNING_SEQUENCES.set(3)
    metrics.WAITING_SEQUENCES.set(7)
    metrics.KV_BLOCKS_TOTAL.set(64)
    metrics.KV_BLOCKS_USED.set(16)
    metrics.TIME_TO_FIRST_TOKEN.observe(0.3)
    labels = {"model_name": "qwen3", "engine": "0"}
    seen = registry()
    assert seen.get_sample_value("vllm:num_requests_running", labels) == 3
    assert seen.get_sample_value("vllm:num_requests_waiting", labels) == 7
    assert seen.get_sample_value("vllm:kv_cache_usage_perc", labels) == 0.25
    for name, counter in (
        ("vllm:num_preemptions_total", metrics.PREEMPTIONS),
        ("vllm:prompt_tokens_total", metrics.PROMPT_TOKENS),
        ("vllm:generation_tokens_total", metrics.GENERATED_TOKENS),
        ("vllm:prefix_cache_queries_total", metrics.PREFIX_CACHE_QUERIED_TOKENS),
        ("vllm:prefix_cache_hits_total", metrics.PREFIX_CACHE_HIT_TOKENS),
        ("vllm:spec_decode_num_drafts_total", metrics.DRAFTS),
        ("vllm:spec_decode_num_draft_tokens_total", metrics.DRAFTED_TOKENS),
        ("vllm:spec_decode_num_accepted_tokens_total", metrics.ACCEPTED_TOKENS),
    ):
        assert seen.get_sample_value(name, labels) == own(counter, "_total")
    histogram: Histogram = metrics.TIME_TO_FIRST_TOKEN
    name = "vllm:time_to_first_token_seconds"
    assert seen.get_sample_value(f"{name}_sum", labels) == own(histogram, "_sum")
    assert seen.get_sample_value(f"{name}_count", labels) == own(histogram, "_count")
    assert seen.get_sample_value(f"{name}_bucket", {**labels, "le": "+Inf"}) == own(histogram, "_count")
    info = {**labels, "block_size": "16", "num_gpu_blocks": "64"}
    assert seen.get_sample_value("vllm:cache_config_info", info) == 1


def test_usage_without_a_plan_is_zero() -> None:
    metrics.KV_BLOCKS_TOTAL.set(0)
    assert registry().get_sample_value("vllm:kv_cache_usage_perc", {"model_name": "qwen3", "engine": "0"}) == 0


# What scrapers send: Prometheus 2.50, Prometheus 3.1, one that asks for old names only, curl, and no header.
ACCEPTS = [
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;"
    "q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "*/*",
    "",
]


@pytest.mark.parametrize("accept", ACCEPTS)
def test_every_scraper_sees_the_same_names(accept: str) -> None:
    encode, _ = choose_encoder(accepted_format(accept))
    names = {line.partition(b"{")[0] for line in encode(registry()).splitlines() if not line.startswith(b"#")}
    assert {b"vllm:num_requests_running", b"vllm:generation_tokens_total", b"vllm:cache_config_info"} <= names
    assert not any(name.startswith(b"vllm_") for name in names)


def test_the_page_lists_them_all() -> None:
    shown = {sample.name for family in registry().collect() for sample in family.samples}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert set(ROW.findall(page)) == shown
