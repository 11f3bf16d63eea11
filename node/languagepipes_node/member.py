"""How both stage and End Model start: read the plan, reach the store, learn the architecture, choose the device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.plan import Plan

from languagepipes_node.health import MemberState
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.weights.remote import StoreClient

if TYPE_CHECKING:
    import torch


class SettingsError(Exception):
    """A member cannot start with these settings; the message names the variable, its value and the remedy."""


@dataclass(frozen=True)
class Startup:
    """A member's plan, credentials, store and the model's description."""

    plan: Plan
    tls: TlsFiles
    store: StoreClient
    architecture: Architecture


def prepare(settings: MemberSettings, state: MemberState) -> Startup:
    """Read the plan and fetch config.json from the store. Waits without limit for a store that has the plan's
    revision, since a pipe's store is not replaced at the same time as its members.

    Raises SettingsError for a plan that cannot be read, WeightsError if the store gave up for good.
    """
    if settings.plan_file is None or settings.store_address is None:
        raise SettingsError("LANGUAGEPIPES_PLAN_FILE and LANGUAGEPIPES_STORE_ADDRESS must be set for this role")
    try:
        plan = Plan.from_json(json.loads(settings.plan_file.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"LANGUAGEPIPES_PLAN_FILE: {settings.plan_file} holds no plan that this version reads ({error}): "
            "let the operator of the same version write it again"
        ) from error
    tls = state.tls = TlsFiles(settings.tls_dir)
    state.enter("waiting", "waiting for the weights store")
    store = StoreClient(
        settings.store_address,
        tls,
        revision=plan.weights_revision,
        moving=state.moving,
        waiting=lambda why: state.wait("the weights store", why),
    )
    architecture = Architecture.from_config(json.loads(store.file("config.json"))).as_stored(store.index().tensors)
    return Startup(plan, tls, store, architecture)


def torch_device(device: Literal["CPU", "GPU"]) -> torch.device:
    """Where this member computes. Raises SettingsError if there is no GPU that torch can use."""
    import torch

    if device == "CPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise SettingsError(
            f"LANGUAGEPIPES_DEVICE: GPU, but torch {torch.__version__} (built {build}) finds none on this machine: "
            "give the member a GPU, or set its device to CPU"
        )
    return torch.device("cuda")


def required(value: str | None, name: str) -> str:
    """`value`, or SettingsError naming the variable that lacks one."""
    if value is None:
        raise SettingsError(f"LANGUAGEPIPES_{name.upper()} must be set for this role")
    return value
