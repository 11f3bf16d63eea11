"""Which of a pipe's weights stores serves the spec's model, and which others members still load from. Pure.

A store serves one model as long as a member may load from it. Where the spec names another model (source, revision,
dtype, quantisation, token), another store is made beside it, under a name that ends in a digest of those: its key. The
first store's name is older than the keys; its key is "". Nothing is recorded: a store is recognised by the settings of
its Deployment, and a member's Deployment has its store's key as a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from languagepipes_api.member_settings import PREFIX
from languagepipes_api.names import LABEL_PLAN, LABEL_STORE, Identity
from languagepipes_api.spec import PipeSpec

from languagepipes_operator import names
from languagepipes_operator.decide.decision import DeploymentDecision, OtherStore
from languagepipes_operator.decide.last_applied import (
    container_of,
    environment_of,
    inputs_of,
    last_applied,
    rendering_of,
)
from languagepipes_operator.digest import digest
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import is_store, label
from languagepipes_operator.observe.snapshot import Children, Snapshot
from languagepipes_operator.observe.stored_plans import StoredPlan
from languagepipes_operator.planning.inputs import model_inputs

FIRST = ""


@dataclass(frozen=True)
class _Model:
    """What a store serves, and with whose token it fetches."""

    source: str
    revision: str | None
    dtype: str | None
    quantization: str
    token: tuple[str, str] | None


def wanted_store(snapshot: Snapshot, plans: Iterable[StoredPlan], *, in_force: StoredPlan | None = None) -> str:
    """The key of the store for the spec as it stands. plans: all that are known. in_force: the spec's own."""
    spec, children = snapshot.pipe.spec, snapshot.children
    own, in_use = key_of(spec), stores_in_use(children)
    live = _stores(children)
    # 1. One that serves this model already: rather one that members load from.
    of_model = [plan for plan in plans if plan is in_force or plan.inputs.startswith(model_inputs(spec))]
    revisions = {spec.model.resolved_from, *(plan.facts.revision for plan in of_model)}
    found = sorted((key for key, each in live.items() if _serves(each, spec, revisions)), key=lambda key: key != FIRST)
    if found:
        return next((key for key in found if key in in_use), found[0])
    # 2. One that members load from and whose Deployment was deleted.
    if own in in_use:
        return own
    serving = {plan.plan.hash for plan in of_model if plan is in_force or plan.serves(spec)}
    if FIRST not in live and any(
        label(each, LABEL_PLAN) in serving and label(each, LABEL_STORE) == FIRST for each in _members(children)
    ):
        return FIRST
    # 3. A new one. The first store's name is free as long as no member loads from it.
    return own if FIRST in in_use else FIRST


def store_identity(snapshot: Snapshot) -> Identity:
    """Every store of a pipe has this one: members whose image is older than a second store know no other."""
    return Identity(snapshot.pipe.namespace, snapshot.pipe.name, -1, "store")


def key_of(spec: PipeSpec) -> str:
    """8 hex digits. They go into names, so they never change."""
    model = _asked(spec)
    found: dict[str, Any] = {
        "source": model.source,
        "revision": model.revision,
        "dtype": model.dtype,
        "token": None if model.token is None else list(model.token),
    }
    if model.quantization != "none":
        found["quantization"] = model.quantization
    return digest(found)[:8]


def store_of_plan(children: Children, stored: StoredPlan, *, wanted: str) -> str:
    """The key of the store that members of a plan load from; `wanted` where no member of it exists."""
    found = {label(each, LABEL_STORE) for each in _members(children) if label(each, LABEL_PLAN) == stored.plan.hash}
    return wanted if wanted in found or not found else min(found)


def stores_in_use(children: Children) -> set[str]:
    """Keys of the stores that a member's Deployment refers to, also one that is stopped."""
    found = {label(each, LABEL_STORE) for each in _members(children)}
    if _stores(children).keys() <= found:
        return found
    # A store may be about to go: a label that someone took away must not decide that.
    return found | {
        label(each, LABEL_STORE) for each in map(rendering_of, _members(children)) if each and "metadata" in each
    }


def other_stores(snapshot: Snapshot, *, wanted: str) -> tuple[OtherStore, ...]:
    """Those that members load from beside the wanted one: they stay as they were last applied."""
    live, found = _stores(snapshot.children), []
    for key in sorted(stores_in_use(snapshot.children) - {wanted}):
        deployment, decided, name = live.get(key), None, names.store(snapshot.pipe.name, key)
        last = last_applied(snapshot, name)
        if deployment is not None and last is not None:
            image = str(container_of(last.manifest).get("image") or "")
            decided = DeploymentDecision(
                store_identity(snapshot), name, image, inputs_of(deployment) or "", last, store_key=key
            )
        source = None if deployment is None else _model_of(deployment).source
        found.append(OtherStore(key, name, source or None, decided))
    return tuple(found)


def _members(children: Children) -> list[Manifest]:
    return [each for each in children.deployments.values() if label(each, LABEL_PLAN)]


def _stores(children: Children) -> Mapping[str, Manifest]:
    return {label(each, LABEL_STORE): each for each in children.deployments.values() if is_store(each)}


def _serves(live: Manifest, spec: PipeSpec, revisions: Iterable[str | None]) -> bool:
    """revisions: what the store's settings may name for the spec's."""
    found, asked = _model_of(live), _asked(spec)
    return found.revision in revisions and found == _Model(
        asked.source, found.revision, asked.dtype, asked.quantization, asked.token
    )


def _asked(spec: PipeSpec) -> _Model:
    model, token = spec.model, spec.model.token_secret_ref
    return _Model(
        model.source,
        model.resolved_from,
        model.dtype,
        model.quantization,
        None if token is None else (token.name, token.key),
    )


def _model_of(live: Manifest) -> _Model:
    """As its settings have it: as rendered, since the live ones may have been edited."""
    rendered = rendering_of(live)
    store = rendered if _pod_spec(rendered) else live
    pod, settings = _pod_spec(store), environment_of(store)
    volumes: list[dict[str, Any]] = pod.get("volumes") or []
    secret = next((each.get("secret") or {} for each in volumes if each.get("name") == "token"), {})
    keys = [str(item.get("key", "")) for item in secret.get("items") or ()]
    return _Model(
        source=str(settings.get(f"{PREFIX}SOURCE", "")),
        revision=settings.get(f"{PREFIX}REVISION"),
        dtype=settings.get(f"{PREFIX}DTYPE"),
        quantization=str(settings.get(f"{PREFIX}QUANTIZATION", "none")),
        token=(str(secret.get("secretName", "")), keys[0]) if keys else None,
    )


def _pod_spec(deployment: Manifest | None) -> dict[str, Any]:
    """{} for what an annotation may hold that is no Deployment."""
    try:
        return {} if deployment is None else dict(deployment["spec"]["template"]["spec"])
    except (KeyError, TypeError, ValueError):
        return {}
