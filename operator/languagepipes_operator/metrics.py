"""What the operator counts of itself, for /metrics. Knows nothing of Kubernetes; others tell it what happened."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PHASES = ("Pending", "Planning", "Fetching", "Starting", "Ready", "Recovering", "Degraded", "Stopped", "Failed")
WRITES = ("create", "apply", "update", "patch", "delete")


class Metrics:
    """One registry for one operator; tests make several in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "languagepipes_operator_reconciles",
            "Reconciles of a pipe by outcome: done, retry (an error; tried again with back-off) or gone.",
            ("outcome",),
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "languagepipes_operator_reconcile_seconds",
            "Duration of a reconcile.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "languagepipes_operator_queue_depth", "Pipes that wait to be reconciled now.", registry=self.registry
        )
        self.api_calls = Counter(
            "languagepipes_operator_api_calls",
            "Requests to the API server by verb, kind and HTTP status (0: no answer). Retries count.",
            ("verb", "kind", "code"),
            registry=self.registry,
        )
        self.watch_restarts = Counter(
            "languagepipes_operator_watch_restarts",
            "Watches begun anew by kind and reason: ended, silent, expired (then all is listed again) or failed.",
            ("kind", "reason"),
            registry=self.registry,
        )
        self.store_questions = Counter(
            "languagepipes_operator_store_questions",
            "Questions to weights stores by outcome: answered or silent.",
            ("outcome",),
            registry=self.registry,
        )
        self.lost_nodes = Gauge(
            "languagepipes_operator_lost_nodes",
            "Nodes with members of pipes that answered before and do not now.",
            registry=self.registry,
        )
        self.ring_questions = Counter(
            "languagepipes_operator_ring_questions",
            "Questions to End Models about their rings by outcome: answered or silent.",
            ("outcome",),
            registry=self.registry,
        )
        self.rings_down = Gauge(
            "languagepipes_operator_rings_down",
            "Rings that were up, and are down by their End Model's own word.",
            registry=self.registry,
        )
        self.pipes = Gauge("languagepipes_operator_pipes", "Pipes by phase.", ("phase",), registry=self.registry)
        self.pipe_condition = Gauge(
            "languagepipes_operator_pipe_condition",
            "1 while the pipe's condition of that type is True, else 0. Shown by the holder of the Lease alone.",
            ("namespace", "pipe", "condition", "reason"),
            registry=self.registry,
        )
        self._conditions: dict[tuple[str, ...], bool] = {}  # as they are shown
        self.certificate_seconds = Gauge(
            "languagepipes_operator_certificate_expiry_seconds",
            "Seconds until the first certificate of the pipe expires.",
            ("namespace", "pipe"),
            registry=self.registry,
        )
        self.leader = Gauge(
            "languagepipes_operator_leader", "1 while this replica holds the Lease, else 0.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self.leader.set(0)
        # Prometheus sees no increase in a series that comes with its first count: so each is there from the start.
        for outcome in ("done", "retry", "gone"):
            self.reconciles.labels(outcome)
        for questions in (self.store_questions, self.ring_questions):
            for outcome in ("answered", "silent"):
                questions.labels(outcome)

    def show_phases(self, phases: Iterable[str]) -> None:
        """Replace what /metrics says of pipes by phase."""
        counts = dict.fromkeys(PHASES, 0)
        for phase in phases:
            counts[phase] = counts.get(phase, 0) + 1
        for phase, count in counts.items():
            self.pipes.labels(phase).set(count)

    def show_conditions(self, conditions: Iterable[tuple[str, str, str, str, bool]]) -> None:
        """Replace what /metrics says of conditions: (namespace, pipe, type, reason, whether it is True) of each. Only
        what has changed is touched: of hundreds of pipes there are thousands.
        """
        shown = {tuple(labels): is_true for *labels, is_true in conditions}
        for labels in self._conditions.keys() - shown.keys():
            self.pipe_condition.remove(*labels)
        for labels, is_true in shown.items():
            if self._conditions.get(labels) is not is_true:
                self.pipe_condition.labels(*labels).set(is_true)
        self._conditions = shown

    def forget_pipe(self, namespace: str, name: str) -> None:
        self.certificate_seconds.remove_by_labels({"namespace": namespace, "pipe": name})

    def calls(self, *verbs: str) -> int:
        """Requests so far, of these verbs or of all."""
        return int(
            sum(
                sample.value
                for metric in self.api_calls.collect()
                for sample in metric.samples
                if sample.name.endswith("_total") and (not verbs or sample.labels["verb"] in verbs)
            )
        )

    def text(self) -> bytes:
        """In Prometheus' text format. For any thread."""
        return generate_latest(self.registry)
