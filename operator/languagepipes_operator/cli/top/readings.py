"""What `languagepipes top` knows at one moment of pipes and their members, and how fast it changed since another.

Pure: where it comes from is `cluster`, how it looks is `view`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from languagepipes_api.names import LABEL_PIPE, LABEL_REPLICA, LABEL_ROLE, LABEL_STAGE, LABEL_STAGE_NAME
from prometheus_client.parser import text_string_to_metric_families

from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import container_state, is_ready, label

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

# Of a member's page, what is shown. The rest, most of it histograms' buckets, is not even parsed.
_SHOWN = (
    "languagepipes_epoch",
    "languagepipes_generated_tokens_total",
    "languagepipes_hop_seconds",
    "languagepipes_kv_blocks_",
    "languagepipes_replays_total",
    "languagepipes_ring_ready",
    "languagepipes_running_sequences",
    "languagepipes_step_seconds",
    "languagepipes_time_between_tokens_seconds",
    "languagepipes_time_to_first_token_seconds",
    "languagepipes_waiting_sequences",
    "languagepipes_wire_bytes_total",
    "process_resident_memory_bytes",
)


def samples_of(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels. Raises ValueError for what is no page of metrics."""
    lines = (line for line in page.splitlines() if line.startswith(_SHOWN) and "_bucket{" not in line)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
    }


@dataclass(frozen=True)
class Member:
    """One pod. samples: None where its metrics could not be read; why: then the reason. at: when, in seconds."""

    pod: Manifest
    at: float
    samples: Samples | None = None
    why: str = ""

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def role(self) -> str:
        return label(self.pod, LABEL_ROLE)

    @property
    def pipe(self) -> tuple[str, str]:
        return str(self.pod["metadata"]["namespace"]), label(self.pod, LABEL_PIPE)

    @property
    def replica(self) -> int:
        """-1 for one of no replica: a weights store."""
        number = label(self.pod, LABEL_REPLICA)
        return int(number) if number.isdecimal() else -1

    @property
    def place(self) -> int:
        """In the ring: the End Model is 0."""
        number = label(self.pod, LABEL_STAGE)
        return int(number) if number.isdecimal() else 0

    @property
    def name(self) -> str:
        if self.role == "stage":
            return label(self.pod, LABEL_STAGE_NAME) or f"stage-{self.place}"
        return "End Model" if self.role == "end-model" else "weights store"

    @property
    def node(self) -> str:
        return str(self.pod["spec"].get("nodeName", ""))

    @property
    def state(self) -> str:
        """As `kubectl get pods` has it, in one word."""
        status = self.pod.get("status", {})
        if "deletionTimestamp" in self.pod["metadata"]:
            return "Terminating"
        for container in status.get("containerStatuses") or ():
            if waiting := container_state(container, "waiting"):
                return str(waiting.get("reason") or "Waiting")
        return "Ready" if is_ready(self.pod) else str(status.get("phase") or "Pending")

    @property
    def restarts(self) -> int:
        return sum(
            int(each.get("restartCount", 0)) for each in self.pod.get("status", {}).get("containerStatuses") or ()
        )

    def value(self, name: str, **labels: str) -> float | None:
        """The sum over all other labels; None where there is no such sample."""
        wanted = frozenset(labels.items())
        found = [
            value for (sample, own), value in (self.samples or {}).items() if sample == name and own.issuperset(wanted)
        ]
        return sum(found) if found else None


@dataclass(frozen=True)
class Reading:
    """Of some pipes. pipes and members are in no order."""

    pipes: tuple[Manifest, ...]
    members: tuple[Member, ...]

    def of(self, pipe: Manifest) -> tuple[Member, ...]:
        """The members of one pipe, in the order of rings; what stands outside of replicas comes last."""
        key = (str(pipe["metadata"]["namespace"]), str(pipe["metadata"]["name"]))
        found = [member for member in self.members if member.pipe == key]
        return tuple(sorted(found, key=lambda each: (each.replica < 0, each.replica, each.place, each.uid)))


@dataclass(frozen=True)
class Change:
    """Two readings of one moment each. Rates are None for a member that one of them lacks, or that began anew."""

    before: Mapping[str, Member] = field(default_factory=dict)

    @classmethod
    def since(cls, reading: Reading | None) -> Change:
        return cls({} if reading is None else {member.uid: member for member in reading.members})

    def rate(self, member: Member, name: str, **labels: str) -> float | None:
        """A second."""
        grown = self._grown(member, name, **labels)
        return None if grown is None else grown[0] / grown[1]

    def mean(self, member: Member, histogram: str) -> float | None:
        """Of what was observed meanwhile; None if nothing was."""
        total, count = (self._grown(member, f"{histogram}_{part}") for part in ("sum", "count"))
        return None if total is None or count is None or not count[0] else total[0] / count[0]

    def total_rate(self, members: Iterable[Member], name: str) -> float | None:
        """Of all that have one."""
        rates = [rate for member in members if (rate := self.rate(member, name)) is not None]
        return sum(rates) if rates else None

    def _grown(self, member: Member, name: str, **labels: str) -> tuple[float, float] | None:
        """By how much, and in how many seconds."""
        old = self.before.get(member.uid)
        if old is None or member.at <= old.at:
            return None
        now, then = member.value(name, **labels), old.value(name, **labels)
        if now is None or then is None or now < then:
            return None
        return now - then, member.at - old.at


def total(members: Iterable[Member], name: str) -> float | None:
    """Of a gauge, over the members that have it."""
    values = [value for member in members if (value := member.value(name)) is not None]
    return sum(values) if values else None
