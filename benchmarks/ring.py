"""The ring as users get it: `languagepipes up` on a YAML file, streams through the OpenAI API.

An End Model and k stages make a ring of k + 1 members, all on this machine and joined by mTLS. What a start goes into
is read from outside: the members' processes, and what each says of itself on /status.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from languagepipes_api.plan import Quantization
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.figures import histogram_quantile
from benchmarks.models import CACHE, ROOT, BenchmarkModel
from benchmarks.processes import Server, free_port

_HOME = CACHE / "ring"
_STORE = _HOME / "store"
_NUMBERS = itertools.count()
_PIPE = """\
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {{name: bench}}
spec:
  model:
    source: file://{source}
    dtype: {dtype}
    quantization: {quantization}
    maxContextLength: {context}
  endModel: {{localLayers: {local_layers}}}
  stages: {{count: {stages}}}
"""
_TELEMETRY = "LANGUAGEPIPES_TELEMETRY_LISTEN"
_TITLE = "languagepipes-node "


@dataclass(frozen=True)
class Start:
    """What one start of `up` went into, in seconds since its process was started; None where it was not seen.

    store_process, stations_process: first seen. loading, loaded: the slowest member's. ready: the ready file.
    first_token: of the first request, sent as soon as the ready file was there.
    """

    store_process: float | None
    members_process: float | None
    loading: float | None
    loaded: float | None
    ready: float
    first_token: float | None = None

    def phases(self) -> dict[str, float]:
        """The same as durations, in order, each from the end of the one before."""
        marks = {
            "checks and `up`'s imports": self.store_process,
            "store, headers, plan": self.members_process,
            "members' imports, waiting for the plan": self.loading,
            "weights": self.loaded,
            "ring joined and noticed": self.ready,
            "first token": self.first_token,
        }
        durations, before = {}, 0.0
        for name, mark in marks.items():
            if mark is not None:
                durations[name] = mark - before
                before = mark
        return durations


@dataclass(frozen=True)
class HopCost:
    """From the End Model's histogram: quantiles in seconds, interpolated within buckets."""

    hops: int
    mean: float
    median: float | None
    ninety_ninth: float | None


class Ring:
    """One running ring. A context manager. Raises benchmarks.processes.ServerFailed if it does not come up."""

    def __init__(
        self,
        model: BenchmarkModel,
        *,
        stages: int,
        dtype: str = "bfloat16",
        quantization: Quantization = "none",
        local_layers: int = 1,
        source: Path | None = None,
        context: int = 2048,
        timeout_seconds: float = 180.0,
        program: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """source: in place of the model's directory. program, environment: what runs in place of `languagepipes`,
        and what its environment has besides.
        """
        self.members = stages + 1
        self.model_id = "bench"
        self.url = ""
        self.start: Start
        self.ready: dict[str, Any] = {}
        self._timeout_seconds = timeout_seconds
        self._program = list(program) or [str(Path(sys.executable).with_name("languagepipes"))]
        self._environment = dict(environment or {})
        # Of this ring alone: another run, or a ring that outlived its run, writes its own ready file.
        self._home = _HOME / f"run-{os.getpid()}-{next(_NUMBERS)}"
        self._home.mkdir(parents=True, exist_ok=True)
        self.ready_file = self._home / "ready.json"
        self.pipe_file = self._home / "pipe.yaml"
        self.pipe_file.write_text(
            _PIPE.format(
                source=source or model.directory,
                dtype=dtype,
                quantization=quantization,
                context=context,
                stages=stages,
                local_layers=local_layers,
            )
        )
        self._server: Server | None = None

    def __enter__(self) -> Ring:
        ready_file = self.ready_file
        ready_file.unlink(missing_ok=True)
        shutil.rmtree(self._home / "logs", ignore_errors=True)
        command = [*self._program, "up", str(self.pipe_file)]
        command += ["--port", str(free_port()), "--ready-file", str(ready_file)]
        command += ["--log-dir", str(self._home / "logs"), "--cache-dir", str(_STORE)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LANGUAGEPIPES_")}
        environment |= self._environment
        self._server = Server(command, log=self._home / "up.log", environment=environment, directory=ROOT)
        observer = _StartObserver(self._server)
        try:
            self._server.wait_until(
                ready_file.exists, what="languagepipes up", timeout_seconds=self._timeout_seconds, every=0.01
            )
            ready = time.perf_counter() - self._server.started
            self.ready = json.loads(ready_file.read_text())
            self.url = self.ready["url"]
            self.model_id = self.ready["model"]
            self.start = observer.stop(ready)
        except BaseException:
            observer.stop(0.0)
            self._server.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """What was logged stays where something went wrong."""
        if self._server is not None:
            self._server.stop()
        if kind is None:
            shutil.rmtree(self._home, ignore_errors=True)

    def since_start(self) -> float:
        """Seconds since `up` was started."""
        assert self._server is not None
        return time.perf_counter() - self._server.started

    @property
    def process_id(self) -> int:
        """Of `up` itself."""
        assert self._server is not None
        return self._server.pid

    def log_of(self, member: str) -> Path:
        """What that member printed: all its processes, one after the other."""
        return self._home / "logs" / f"{member}.log"

    def wait_ready(self, *, for_seconds: float, timeout_seconds: float) -> None:
        """Until every member has been ready for so long, whatever was restarted meanwhile. Raises ServerFailed."""
        assert self._server is not None

        def ready() -> bool:
            with contextlib.suppress(FileNotFoundError, ValueError):
                since = self.ready_file.stat().st_mtime  # it is there exactly while the pipe is ready
                self.ready = json.loads(self.ready_file.read_text())
                return time.time() - since >= for_seconds
            return False

        self._server.wait_until(ready, what="languagepipes up", timeout_seconds=timeout_seconds)

    def plan(self) -> str:
        """The members and their layers, as the ready file has them."""
        stages = ", ".join(f"{stage['name']} {stage['layers']}" for stage in self.ready["stages"])
        return f"end-model {self.ready['end_model']['layers']}; {stages}"

    def process_ids(self) -> dict[str, int]:
        """Of each member, by name."""
        members = [self.ready["end_model"], self.ready["store"], *self.ready["stages"]]
        return {member["name"]: int(member["pid"]) for member in members}

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """The End Model's /metrics: samples by name, each with its labels."""
        answer = httpx.get(f"http://{self.ready['end_model']['telemetry']}/metrics", timeout=5.0)
        answer.raise_for_status()
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return samples

    def resident_bytes(self) -> dict[str, int]:
        """Each member's resident memory now, by name."""
        return {name: psutil.Process(pid).memory_info().rss for name, pid in self.process_ids().items()}


def hop_cost(
    before: dict[str, list[tuple[dict[str, str], float]]], after: dict[str, list[tuple[dict[str, str], float]]]
) -> HopCost | None:
    """What the hops between two readings of `Ring.metrics` cost; None if there were none."""
    name = "languagepipes_hop_seconds"

    def total(samples: dict[str, list[tuple[dict[str, str], float]]], which: str) -> float:
        return sum(value for _, value in samples.get(which, []))

    hops = total(after, f"{name}_count") - total(before, f"{name}_count")
    if hops <= 0:
        return None
    earlier = {labels["le"]: value for labels, value in before.get(f"{name}_bucket", [])}
    buckets = [
        (float(labels["le"]), value - earlier.get(labels["le"], 0.0)) for labels, value in after[f"{name}_bucket"]
    ]
    seconds = total(after, f"{name}_sum") - total(before, f"{name}_sum")
    return HopCost(
        hops=int(hops),
        mean=seconds / hops,
        median=histogram_quantile(0.5, buckets),
        ninety_ninth=histogram_quantile(0.99, buckets),
    )


def _member_name(process: psutil.Process) -> str | None:
    """None if it is no member."""
    command = process.cmdline()
    # Of a member that was forked only the title tells: its environment in /proc is the fork server's.
    if command and command[0].startswith(_TITLE):
        return str(command[0].removeprefix(_TITLE))
    environment = process.environ()
    if _TELEMETRY not in environment:
        return None
    return str(environment["LANGUAGEPIPES_ROLE"] + environment.get("LANGUAGEPIPES_STAGE", ""))


def _telemetry(process: psutil.Process) -> str | None:
    """The address that it answers /status at; None while it listens nowhere."""
    if (told := process.environ().get(_TELEMETRY)) is not None:
        return str(told)
    # A member opens that port before any other.
    listening = [found.laddr for found in process.net_connections("inet") if found.status == psutil.CONN_LISTEN]
    return f"{listening[0].ip}:{listening[0].port}" if listening else None


class _StartObserver:
    """Watches a start from a thread: when processes appear and when they say that they load and are ready."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._seen: dict[tuple[str, str], float] = {}  # (member, what) -> seconds
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self, ready: float) -> Start:
        self._stopping.set()
        self._thread.join()

        def moment(what: str, *, store: bool = False) -> float | None:
            times = [
                time for (member, seen), time in self._seen.items() if seen == what and (member == "store") == store
            ]
            return max(times) if times else None

        return Start(
            store_process=moment("process", store=True),
            members_process=moment("process"),
            loading=moment("loading"),
            loaded=moment("loaded"),
            ready=ready,
        )

    def _watch(self) -> None:
        addresses: dict[str, str] = {}
        with httpx.Client(timeout=0.5, trust_env=False) as client:
            while not self._stopping.wait(0.05):
                with contextlib.suppress(psutil.Error):
                    for child in psutil.Process(self._server.pid).children(recursive=True):
                        with contextlib.suppress(psutil.Error):
                            if (name := _member_name(child)) is not None:
                                self._note(name, "process")
                                if name not in addresses and (address := _telemetry(child)) is not None:
                                    addresses[name] = address
                for name, address in addresses.items():
                    with contextlib.suppress(httpx.HTTPError, ValueError):
                        status = client.get(f"http://{address}/status").json()
                        if status["total_bytes"] or status["state"] in ("loading", "ready"):
                            self._note(name, "loading")
                        if status["total_bytes"] and status["loaded_bytes"] >= status["total_bytes"]:
                            self._note(name, "loaded")

    def _note(self, member: str, what: str) -> None:
        self._seen.setdefault((member, what), time.perf_counter() - self._server.started)
