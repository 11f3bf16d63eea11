"""Metrics and health of every role, on a port of their own. Base units, bounded labels, and never any text.

Every metric of the node is defined here, so that names and labels can be read in one place. A stage's metrics hold
lengths and times, no content.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LAST_TOKEN_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)
_HOP_SECONDS = (0.00005, 0.0001, 0.00015, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1)

# Every role's
CERTIFICATE_EXPIRY = Gauge(
    "languagepipes_certificate_expiry_timestamp_seconds", "When the certificate for new connections ends (Unix time)."
)

# The End Model's
REQUESTS = Counter("languagepipes_requests", "Requests by route and outcome.", ["route", "outcome"])
TIME_TO_FIRST_TOKEN = Histogram(
    "languagepipes_time_to_first_token_seconds", "From admission to the first token.", buckets=_FIRST_TOKEN_SECONDS
)
TIME_BETWEEN_TOKENS = Histogram(
    "languagepipes_time_between_tokens_seconds", "Between two tokens of one request.", buckets=_TOKEN_SECONDS
)
TIME_TO_LAST_TOKEN = Histogram(
    "languagepipes_time_to_last_token_seconds",
    "From admission to the last token of an answer that was completed.",
    buckets=_LAST_TOKEN_SECONDS,
)
PROMPT_TOKENS = Counter("languagepipes_prompt_tokens", "Prompt tokens of admitted requests.")
GENERATED_TOKENS = Counter("languagepipes_generated_tokens", "Tokens sampled.")
PREFIX_CACHE_QUERIED_TOKENS = Counter(
    "languagepipes_prefix_cache_queried_tokens", "Prompt tokens of sequences that started, for the first time."
)
PREFIX_CACHE_HIT_TOKENS = Counter(
    "languagepipes_prefix_cache_hit_tokens", "Those of them that were not computed, since their KV was there."
)
PREFIX_CACHE_BLOCKS = Gauge(
    "languagepipes_prefix_cache_blocks", "KV blocks that a prompt may be found to begin with, in use or not."
)
DRAFTS = Counter("languagepipes_speculation_drafts", "Drafts of the next tokens of a sequence that were verified.")
DRAFTED_TOKENS = Counter("languagepipes_speculation_draft_tokens", "Tokens of these drafts.")
ACCEPTED_TOKENS = Counter("languagepipes_speculation_accepted_tokens", "Those of them that were sampled.")
RUNNING_SEQUENCES = Gauge("languagepipes_running_sequences", "Sequences that hold KV blocks.")
WAITING_SEQUENCES = Gauge("languagepipes_waiting_sequences", "Admitted sequences that wait for KV blocks or a slot.")
PREEMPTIONS = Counter("languagepipes_preemptions", "Sequences put back to be recomputed, for want of KV blocks.")
REPLAYS = Counter("languagepipes_replays", "Sequences computed again, in whole or in part, after a lost epoch.")
RECOMPUTED_TOKENS = Counter(
    "languagepipes_recomputed_tokens", "Tokens of prompts and answers computed again after a lost epoch."
)
REQUESTS_WAITED = Counter("languagepipes_requests_waited", "Requests that waited for the ring, running or new ones.")
RING_DOWN_SECONDS = Counter("languagepipes_ring_down_seconds", "Time without a ring, after it was joined once.")
RING_READY = Gauge("languagepipes_ring_ready", "1 while the ring is up: its last health check passed.")
RING_EPOCHS = Counter("languagepipes_ring_epochs", "Epochs opened, by why the last one ended.", ["reason"])
RING_STEP = Histogram(
    "languagepipes_ring_step_seconds", "One micro-batch's way round the ring.", buckets=_TOKEN_SECONDS
)
HOP = Histogram(
    "languagepipes_hop_seconds",
    "Per-hop cost: the ring's time less all members' busy time, a hop.",
    buckets=_HOP_SECONDS,
)
FRAMES_IN_FLIGHT = Gauge("languagepipes_frames_in_flight", "Frames sent that have not returned yet.")

# Every member's (stages and End Model)
KV_BLOCKS_TOTAL = Gauge("languagepipes_kv_blocks_total", "KV blocks planned.")
KV_BLOCKS_USED = Gauge("languagepipes_kv_blocks_used", "KV blocks in use (End Model) or named by the last frames.")
STEP = Histogram("languagepipes_step_seconds", "Compute for one frame at this member.", buckets=_TOKEN_SECONDS)
FRAMES = Counter("languagepipes_frames", "Frames by direction.", ["direction"])
WIRE_BYTES = Counter("languagepipes_wire_bytes", "Bytes of frames by direction.", ["direction"])
EPOCH = Gauge("languagepipes_epoch", "The epoch's counter.")
REFUSED_HELLOS = Counter("languagepipes_refused_hellos", "Handshakes refused, by reason.", ["reason"])
LOAD_BYTES = Gauge("languagepipes_load_bytes", "Bytes of weights loaded so far.")
LOAD_TOTAL_BYTES = Gauge("languagepipes_load_total_bytes", "Bytes of weights to load.")

# The store's
STORE_FETCHED_BYTES = Gauge("languagepipes_store_fetched_bytes", "Bytes fetched or found in the cache.")
STORE_TOTAL_BYTES = Gauge("languagepipes_store_total_bytes", "Bytes to fetch.")
STORE_SERVED_BYTES = Counter("languagepipes_store_served_bytes", "Bytes of weights served, by member.", ["member"])

_OF_END_MODEL = (
    REQUESTS, TIME_TO_FIRST_TOKEN, TIME_BETWEEN_TOKENS, TIME_TO_LAST_TOKEN, PROMPT_TOKENS, GENERATED_TOKENS,
    PREFIX_CACHE_QUERIED_TOKENS, PREFIX_CACHE_HIT_TOKENS, PREFIX_CACHE_BLOCKS,
    DRAFTS, DRAFTED_TOKENS, ACCEPTED_TOKENS,
    RUNNING_SEQUENCES, WAITING_SEQUENCES, PREEMPTIONS, REPLAYS, RECOMPUTED_TOKENS, REQUESTS_WAITED, RING_DOWN_SECONDS,
    RING_READY, RING_EPOCHS, RING_STEP, HOP, FRAMES_IN_FLIGHT,
)  # fmt: skip
_OF_MEMBERS = (
    KV_BLOCKS_TOTAL, KV_BLOCKS_USED, STEP, FRAMES, WIRE_BYTES, EPOCH, REFUSED_HELLOS, LOAD_BYTES, LOAD_TOTAL_BYTES,
)  # fmt: skip
_OF_STORE = (STORE_FETCHED_BYTES, STORE_TOTAL_BYTES, STORE_SERVED_BYTES)


def show_only(role: Literal["store", "stage", "end-model"]) -> None:
    """Remove other roles' metrics from this process's /metrics, where they would be zero for ever.

    A store or a stage that exports `languagepipes_ring_ready 0` would set off alerts.
    """
    others: list[Counter | Gauge | Histogram] = []
    if role != "end-model":
        others += _OF_END_MODEL
    if role == "store":
        others += _OF_MEMBERS
    else:
        others += _OF_STORE
    for metric in others:
        REGISTRY.unregister(metric)
