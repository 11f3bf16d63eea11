"""One replica of processes on loopback: a store, an End Model, stages, and a relay in each link of the ring.

What ends is started again at once, at the same addresses, as a kubelet or `languagepipes up` would do it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from languagepipes_api.member_settings import PREFIX, MemberSettings, SpeculativeDecoding
from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan, Quantization
from languagepipes_api.spec import PipeSpec, parse_pipe
from languagepipes_operator.certificates.authority import issue, new_ca, write_tls_dir
from languagepipes_operator.cli.model_facts import read_facts
from languagepipes_operator.planning.plan import plan
from prometheus_client.parser import text_string_to_metric_families

from support.chaos.model import CONTEXT, Dtype, write_model
from support.chaos.processes import Processes, Program
from support.ports import free_address
from support.relayed_link import RelayedLink
from support.waiting import eventually

PIPE = "chaos"
END_MODEL, STORE = "end-model", "store"


@dataclass(frozen=True)
class Shape:
    """A replica. kv_blocks of block_tokens each: fewer than the streams want, so that some are pre-empted.

    dtype: of weights, keys and values, and frames. quantization: of weights. speculation: `ngram` sends each draft that
    there is, whatever it costs, so frames with wrong ones are lost, replayed and pre-empted too.
    """

    model: str
    stages: int
    local_layers: int = 1
    tail_layers: int = 0
    dtype: Dtype = "float32"
    quantization: Quantization = "none"
    speculation: SpeculativeDecoding = "none"
    kv_blocks: int = 64
    block_tokens: int = 16
    frame_tokens: int = 96
    frames_in_flight: int = 4

    def spec(self, source: Path) -> PipeSpec:
        return parse_pipe(
            {
                "apiVersion": "languagepipes.io/v1alpha1",
                "kind": "LanguagePipe",
                "metadata": {"name": PIPE},
                "spec": {
                    "model": {
                        "source": f"file://{source}",
                        "dtype": self.dtype,
                        "quantization": self.quantization,
                        "maxContextLength": CONTEXT,
                    },
                    "endModel": {"localLayers": self.local_layers, "tailLayers": self.tail_layers},
                    "stages": {"count": self.stages},
                },
            },
            local=True,
        ).spec

    def plan(self, source: Path) -> Plan:
        """The planner's, with this shape's blocks and frames."""
        spec = self.spec(source)
        return replace(
            plan(spec, read_facts(spec.model)),
            kv_blocks=self.kv_blocks,
            kv_block_tokens=self.block_tokens,
            frame_tokens=self.frame_tokens,
            frames_in_flight=self.frames_in_flight,
        )


SHAPES = {
    "experts, sliding windows, tail layers": Shape("moe", stages=3, tail_layers=1),
    "full and sliding attention, two stages, drafts": Shape("sliding", stages=2, speculation="ngram"),
    "bfloat16, a tail layer": Shape("sliding", stages=2, tail_layers=1, dtype="bfloat16"),
    "int8, drafts": Shape("sliding", stages=2, dtype="bfloat16", quantization="int8", speculation="ngram"),
}


class Members:
    """One replica. A context manager: ready on entry, and on exit none of its processes is left.

    links[0] is the relay from the End Model to stage 1, links[n] that from the last stage to the End Model. Its methods
    may be called from any thread.
    """

    def __init__(self, shape: Shape, directory: Path, processes: Processes) -> None:
        self.shape = shape
        self.directory = directory
        self.processes = processes
        self.stages = [f"stage-{number}" for number in range(1, shape.stages + 1)]
        self.links: list[RelayedLink] = []
        self._settings: dict[str, MemberSettings] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Members:
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return f"http://{self._settings[END_MODEL].api_listen}/v1"

    @property
    def names(self) -> list[str]:
        return [STORE, END_MODEL, *self.stages]

    def signal(self, name: str, number: signal.Signals) -> int | None:
        """Send it to the member's present process; its process id, or None if it has none at the moment."""
        return self.processes.signal(name, number)

    def status(self, name: str = END_MODEL) -> dict[str, Any]:
        """What the member says of itself. Raises httpx.HTTPError."""
        answer = httpx.get(f"http://{self._settings[name].telemetry_listen}/status", timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def metrics(self, name: str = END_MODEL) -> dict[str, float]:
        """By name: the sum of a metric's samples. Raises httpx.HTTPError."""
        answer = httpx.get(f"http://{self._settings[name].telemetry_listen}/metrics", timeout=10)
        answer.raise_for_status()
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums

    def ring_ready(self) -> bool:
        """Whether the End Model reports a whole ring."""
        try:
            return bool(self.status()["ring_ready"])
        except httpx.HTTPError:
            return False

    def wait_ready(self, seconds: float) -> None:
        """Until every member is ready and the ring is whole."""

        def ready() -> bool:
            return self.ring_ready() and all(self.status(name)["state"] == "ready" for name in self.names)

        eventually(
            ready, seconds=seconds, what="every member ready", every_seconds=0.1, not_yet=(httpx.HTTPError, KeyError)
        )

    def log_tail(self, name: str, lines: int = 12) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _begin(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        source = write_model(self.directory / "model", self.shape.model)
        plan_file = self.directory / "plan.json"
        plan_file.write_text(json.dumps(self.shape.plan(source).to_json()))
        self._settings = self._all_settings(source, plan_file)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        for name in self.names:
            environment = {**inherited, "CUDA_VISIBLE_DEVICES": "", **self._settings[name].to_environment()}
            self._stack.callback(self.processes.stop, name)
            self.processes.start(name, Program(environment, self._log(name)))
        self.wait_ready(120)

    def _all_settings(self, source: Path, plan_file: Path) -> dict[str, MemberSettings]:
        authority = new_ca("default", PIPE)

        def tls(identity: Identity) -> Path:
            directory = self.directory / "tls" / f"{identity.role}-{identity.index}"
            write_tls_dir(directory, authority, issue(authority, identity))
            return directory

        rings = [free_address() for _ in range(self.shape.stages + 1)]  # the End Model's is 0
        for number in range(len(rings)):
            self.links.append(self._stack.enter_context(RelayedLink(rings[(number + 1) % len(rings)])))
        store = free_address()
        common: dict[str, Any] = {
            "pipe": PIPE,
            "threads": 1,
            "shared_cores": True,
            "plan_file": plan_file,
            "store_address": store,
        }
        settings = {
            STORE: MemberSettings(
                role="store",
                pipe=PIPE,
                tls_dir=tls(Identity("default", PIPE, -1, "store")),
                telemetry_listen=free_address(),
                store_listen=store,
                source=f"file://{source}",
                dtype=self.shape.dtype,
                quantization=self.shape.quantization,
                cache_dir=self.directory / "cache",
            ),
            END_MODEL: MemberSettings(
                role="end-model",
                tls_dir=tls(Identity("default", PIPE, 0, "end-model")),
                telemetry_listen=free_address(),
                ring_listen=rings[0],
                successor=self.links[0].address,
                api_listen=free_address(),
                served_name=PIPE,
                speculative_decoding=self.shape.speculation,
                **common,
            ),
        }
        for number, name in enumerate(self.stages, 1):
            settings[name] = MemberSettings(
                role="stage",
                stage=number,
                tls_dir=tls(Identity("default", PIPE, 0, "stage", number)),
                telemetry_listen=free_address(),
                ring_listen=rings[number],
                successor=self.links[number].address,
                **common,
            )
        return settings

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"
