"""What each member of a plan is told on this machine: its settings, as values. Starts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from languagepipes_api.end_model_settings import end_model_settings
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import Identity
from languagepipes_api.plan import LayerRange, Plan
from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.cli.gpus import Gpu
from languagepipes_operator.cli.up.addresses import HeldPorts
from languagepipes_operator.cli.up.environment import inherited
from languagepipes_operator.cli.up.processes import Command
from languagepipes_operator.cli.up.snapshot import END_MODEL, STORE

# At the end of `up` answers that are under way get so long, then an error, within `processes.GRACE_SECONDS`.
_DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class MemberProcess:
    """A stage or the End Model: its settings, and what it runs in words."""

    name: str
    settings: MemberSettings
    work: str


class _Common(TypedDict):
    namespace: str
    pipe: str
    shared_cores: bool
    plan_file: Path
    store_address: str


@dataclass(frozen=True)
class Secrets:
    """Files that stand in for the pipe's Secrets; None where the pipe names none."""

    token_file: Path | None = None
    api_keys_dir: Path | None = None


def operator_identity(pipe: LanguagePipe) -> Identity:
    """Who `up` is to the pipe's members."""
    return Identity(pipe.namespace, pipe.name, -1, "operator")


def store_settings(
    pipe: LanguagePipe,
    *,
    listen: str,
    telemetry: str,
    tls_dir: Path,
    cache_dir: Path,
    token_file: Path | None,
) -> MemberSettings:
    """The store fetches what the pipe's source names; a file:// path in it is absolute by now."""
    model = pipe.spec.model
    return MemberSettings(
        role="store",
        namespace=pipe.namespace,
        pipe=pipe.name,
        tls_dir=tls_dir,
        telemetry_listen=telemetry,
        store_listen=listen,
        source=model.source,
        revision=model.resolved_from,
        dtype=model.dtype,
        quantization=model.quantization,
        cache_dir=cache_dir,
        token_file=token_file,
    )


def member_processes(
    pipe: LanguagePipe,
    plan: Plan,
    *,
    ports: HeldPorts,
    api: str,
    store: str,
    plan_file: Path,
    tls_dirs: Mapping[Identity, Path],
    api_keys_dir: Path | None,
) -> list[MemberProcess]:
    """The stages in their order, then the End Model, each with free addresses and its successor's."""
    names = [*(stage.name for stage in plan.stages), END_MODEL]
    ring = [ports.hold() for _ in names]
    identities = member_process_identities(pipe, plan)
    # What is the same for all. Threads stay unset: each member takes the CPUs that this machine allows.
    common: _Common = {
        "namespace": pipe.namespace,
        "pipe": pipe.name,
        "shared_cores": True,
        "plan_file": plan_file,
        "store_address": store,
    }
    found = [
        MemberProcess(
            stage.name,
            MemberSettings(
                role="stage",
                stage=index,
                tls_dir=tls_dirs[identities[index - 1]],
                telemetry_listen=ports.hold(),
                ring_listen=ring[index - 1],
                successor=ring[index],
                device=stage.device,
                **common,
            ),
            layers_text(stage.layers),
        )
        for index, stage in enumerate(plan.stages, start=1)
    ]
    end_model = MemberProcess(
        END_MODEL,
        MemberSettings(
            role="end-model",
            tls_dir=tls_dirs[identities[-1]],
            telemetry_listen=ports.hold(),
            ring_listen=ring[-1],
            successor=ring[0],
            device=plan.end_model.device,
            api_listen=api,
            api_keys_dir=api_keys_dir,
            **end_model_settings(pipe),
            drain_seconds=_DRAIN_SECONDS,
            **common,
        ),
        end_model_text(plan),
    )
    return [*found, end_model]


def member_process_identities(pipe: LanguagePipe, plan: Plan) -> list[Identity]:
    """In the order of `members`."""
    stages = [Identity(pipe.namespace, pipe.name, 0, "stage", index) for index in range(1, len(plan.stages) + 1)]
    return [*stages, Identity(pipe.namespace, pipe.name, 0, "end-model")]


def command(
    name: str,
    settings: MemberSettings,
    *,
    directory: Path,
    log_dir: Path,
    gpu: Gpu | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Command:
    """How to start the member: the same program as in a pod, told by its environment alone.

    gpu: the one that it sees; a member without one sees none, so that it takes no memory there.
    """
    kept = inherited(environment, secrets=name == STORE) | {"CUDA_VISIBLE_DEVICES": "" if gpu is None else gpu.uuid}
    # In a pod the kubelet makes this file, at the default path.
    termination_log = directory / "termination" / name
    told = settings.model_copy(update={"termination_log": termination_log})
    return Command(
        name=name,
        # -P: what lies in the working directory is no module of ours.
        argv=(sys.executable, "-P", "-m", "languagepipes_node"),
        environment={**kept, **told.to_environment()},
        directory=directory,
        log=log_dir / f"{name}.log",
        termination_log=termination_log,
        # The store imports no torch. A CUDA context that a library opened would not survive a fork.
        forks=name != STORE and gpu is None,
    )


def share_gpus(found: Sequence[MemberProcess], gpus: Sequence[Gpu]) -> dict[str, Gpu]:
    """A GPU for each member that computes on one: in turn, so that no GPU has two before each has one."""
    wanting = [member_process.name for member_process in found if member_process.settings.device == "GPU"]
    return {name: gpus[index % len(gpus)] for index, name in enumerate(wanting)} if gpus else {}


def layers_text(layers: LayerRange) -> str:
    """ "layers 1-9", or "layer 5" for one."""
    return f"layer {layers.start}" if len(layers) == 1 else f"layers {layers}"


def end_model_text(plan: Plan) -> str:
    """What the End Model runs, in the order of the pass."""
    parts = ["embedding", layers_text(plan.end_model.local_layers)]
    if len(plan.end_model.tail_layers) > 0:
        parts.append(layers_text(plan.end_model.tail_layers))
    return ", ".join([*parts, "head"])
