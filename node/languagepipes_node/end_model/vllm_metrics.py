"""The End Model's metrics once more, under the names that vLLM gives them.

Gateways (the Kubernetes Gateway API's inference extension, llm-d) and autoscalers' examples (KEDA, Knative) read these
by name. Nothing is measured twice: each is one of `metrics`, read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from languagepipes_node import metrics

GAUGES: dict[str, Gauge] = {
    "vllm:num_requests_running": metrics.RUNNING_SEQUENCES,
    "vllm:num_requests_waiting": metrics.WAITING_SEQUENCES,
}
COUNTERS: dict[str, Counter] = {
    "vllm:num_preemptions_total": metrics.PREEMPTIONS,
    "vllm:prompt_tokens_total": metrics.PROMPT_TOKENS,
    "vllm:generation_tokens_total": metrics.GENERATED_TOKENS,
    "vllm:prefix_cache_queries_total": metrics.PREFIX_CACHE_QUERIED_TOKENS,
    "vllm:prefix_cache_hits_total": metrics.PREFIX_CACHE_HIT_TOKENS,
    "vllm:spec_decode_num_drafts_total": metrics.DRAFTS,
    "vllm:spec_decode_num_draft_tokens_total": metrics.DRAFTED_TOKENS,
    "vllm:spec_decode_num_accepted_tokens_total": metrics.ACCEPTED_TOKENS,
}
HISTOGRAMS: dict[str, Histogram] = {
    "vllm:time_to_first_token_seconds": metrics.TIME_TO_FIRST_TOKEN,
    "vllm:inter_token_latency_seconds": metrics.TIME_BETWEEN_TOKENS,
    "vllm:e2e_request_latency_seconds": metrics.TIME_TO_LAST_TOKEN,
}
KV_USAGE = "vllm:kv_cache_usage_perc"
CACHE_CONFIG = "vllm:cache_config_info"
_LABELS = ("model_name", "engine")


class VllmMetrics(Collector):
    """For the registry of one End Model. served_name: of the model. block_tokens: tokens that a KV block holds."""

    def __init__(self, *, served_name: str, block_tokens: int) -> None:
        self._labels = (served_name, "0")
        self._block_tokens = block_tokens

    def collect(self) -> Iterator[Metric]:
        """All of them, as they are now."""
        for name, gauge in GAUGES.items():
            yield self._gauge(name, _help_of(gauge), _value(gauge))
        total, used = _value(metrics.KV_BLOCKS_TOTAL), _value(metrics.KV_BLOCKS_USED)
        yield self._gauge(KV_USAGE, "Share of the KV blocks in use, 0 to 1.", used / total if total else 0.0)
        for name, counter in COUNTERS.items():
            counted = CounterMetricFamily(name.removesuffix("_total"), _help_of(counter), labels=_LABELS)
            counted.add_metric(self._labels, _value(counter))
            yield counted
        for name, histogram in HISTOGRAMS.items():
            yield self._histogram(name, histogram)
        blocks = GaugeMetricFamily(
            CACHE_CONFIG, "KV blocks as planned; always 1.", labels=(*_LABELS, "block_size", "num_gpu_blocks")
        )
        blocks.add_metric((*self._labels, str(self._block_tokens), str(int(total))), 1.0)
        yield blocks

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _histogram(self, name: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(name, _help_of(histogram), labels=_LABELS)
        samples = next(iter(histogram.collect())).samples
        buckets = [(sample.labels["le"], sample.value) for sample in samples if sample.name.endswith("_bucket")]
        total = next(sample.value for sample in samples if sample.name.endswith("_sum"))
        family.add_metric(self._labels, buckets, total)
        return family


def _value(metric: Gauge | Counter) -> float:
    samples = next(iter(metric.collect())).samples
    return next(sample.value for sample in samples if not sample.name.endswith("_created"))


def _help_of(metric: Gauge | Counter | Histogram) -> str:
    return str(next(iter(metric.describe())).documentation)
