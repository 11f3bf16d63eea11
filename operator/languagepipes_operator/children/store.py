"""The weights store: its Deployment, its volume and the Hub's authorities. It belongs to the pipe and not to a plan.

It has no template of its own: it goes where the End Model may go (`EndModelSpec.store_template`), and needs neither
its GPU nor its memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from languagepipes_api import source as sources
from languagepipes_api.member_settings import PREFIX, MemberSettings
from languagepipes_api.names import LABEL_ROLE, STORE_PORT, TELEMETRY_PORT, Identity

from languagepipes_operator.children import names, pods, quantities, resources
from languagepipes_operator.children.labels import labels, metadata
from languagepipes_operator.children.settings import ManifestSettings
from languagepipes_operator.decide import image_pulls as pulls
from languagepipes_operator.decide import last_applied as rendered
from languagepipes_operator.observe.ownership import label
from languagepipes_operator.observe.snapshot import Manifest, Snapshot, StoredPlan

_GRACE_SECONDS = 20


def store_identity(snapshot: Snapshot) -> Identity:
    return Identity(snapshot.pipe.namespace, snapshot.pipe.name, -1, "store")


def cache_claim(snapshot: Snapshot) -> Manifest | None:
    """The volume that keeps what was fetched; None where the spec asks for none. One that somebody made larger stays
    so: volumes do not shrink.
    """
    pipe = snapshot.pipe
    cache, name = pipe.spec.cache, names.cache_claim(pipe.name)
    if cache is None:
        return None
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": _largest(cache.size, snapshot.children.claims.get(name))}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(snapshot, name, labels(pipe.name, "store")),
        "spec": spec,
    }


def _largest(asked: int | str, live: Manifest | None) -> str:
    requested = {} if live is None else live["spec"].get("resources", {}).get("requests", {})
    there = requested.get("storage")
    if there is not None and quantities.value_of(there) > quantities.value_of(asked):
        return str(there)
    return quantities.canonical(asked)


def hub_authorities(snapshot: Snapshot, settings: ManifestSettings) -> Manifest | None:
    """The ConfigMap of the authorities that the Hub may be signed by; None where it takes none. Its name follows from
    its content, which never changes: others are another ConfigMap, and so another pod.
    """
    pipe = snapshot.pipe
    bundle = _of_the_hub(settings.hub_ca_bundle, snapshot)
    if not bundle:
        return None
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(snapshot, names.hub_ca(pipe.name, rendered.digest(bundle)), labels(pipe.name, "store")),
        "immutable": True,
        "data": {names.HUB_CA_FILE.name: bundle},
    }


def store_deployment(snapshot: Snapshot, kept: StoredPlan | None, settings: ManifestSettings) -> Manifest:
    """kept: the plan in force: the store runs its image, or one that is newer already, and is told its commit once it
    has come back with another. Before there is a plan it keeps the image it has. An image that cannot be pulled gives
    way to the operator's, also where the ring keeps it: members of any image load from it.
    """
    pipe = snapshot.pipe
    model = pipe.spec.model
    name = names.store(pipe.name)
    live = snapshot.children.deployments.get(name)
    before = rendered.rendering_of(live)
    pinned = _pinned(snapshot, kept, before)
    runs = _container_field(before, "image")
    lost = runs not in (None, settings.node_image) and pulls.cannot_be_pulled(
        runs, [] if live is None else [live], _pods(snapshot), now=snapshot.now
    )
    image = settings.node_image if kept is None or lost else kept.node_image
    template = pods.template_fields(pipe.spec.end_model.store_template)
    token = model.token_secret_ref
    cached = pipe.spec.cache is not None
    mirror = _of_the_hub(settings.hub_endpoint, snapshot)
    authorities = hub_authorities(snapshot, settings)
    source = sources.parse_source(model.source)
    files = [
        pods.secret_files("tls", names.leaf_secret(store_identity(snapshot)), str(names.TLS_DIR)),
        pods.Files(
            "cache",
            {"persistentVolumeClaim": {"claimName": names.cache_claim(pipe.name)}} if cached else {"emptyDir": {}},
            str(names.CACHE_DIR),
            read_only=False,
        ),
    ]
    if token is not None:
        files.append(
            pods.secret_files("token", token.name, str(names.TOKEN_DIR), key=token.key, as_file=names.TOKEN_FILE.name)
        )
    if authorities is not None:
        files.append(
            pods.Files("hub-ca", {"configMap": {"name": authorities["metadata"]["name"]}}, str(names.HUB_CA_DIR))
        )
    if source.scheme == "pvc":
        claim = {"persistentVolumeClaim": {"claimName": source.location, "readOnly": True}}
        files.append(pods.Files("model", claim, str(names.VOLUMES_DIR / source.location)))
    container = pods.Container(
        image=image,
        pull_policy=settings.image_pull_policy,
        settings=MemberSettings(
            role="store",
            namespace=pipe.namespace,
            pipe=pipe.name,
            tls_dir=Path(names.TLS_DIR),
            telemetry_listen=f"{settings.every_address}:{TELEMETRY_PORT}",
            store_listen=f"{settings.every_address}:{STORE_PORT}",
            source=model.source,
            revision=pinned or model.resolved_from,
            dtype=model.dtype,
            cache_dir=Path(names.CACHE_DIR),
            token_file=None if token is None else Path(names.TOKEN_FILE),
            hub_ca_file=None if authorities is None else Path(names.HUB_CA_FILE),
            volumes_dir=Path(names.VOLUMES_DIR) if source.scheme == "pvc" else None,
        ),
        resources=resources.store_resources(),
        ports={"store": STORE_PORT, "telemetry": TELEMETRY_PORT},
        files=files,
        environment={"HF_ENDPOINT": mirror} if mirror else {},
    )
    own = labels(pipe.name, "store")
    placement = {"affinity": template["affinity"]} if "affinity" in template else {}
    pod = pods.pod_spec(
        container,
        template=template,
        grace_seconds=_GRACE_SECONDS,
        placement=placement,
        host={},
        fixed_ids=settings.fixed_ids,
    )
    wanted = pods.deployment(snapshot, name, labels=own, selector=own, pod=pod)
    inputs: dict[str, Any] = {
        "source": model.source,
        "revision": model.resolved_from,
        "dtype": model.dtype,
        "token": None if token is None else [token.name, token.key],
        "cached": cached,
        "template": template,
        **pods.inputs_of(settings),
    }
    if mirror:
        inputs["mirror"] = mirror
    if authorities is not None:
        inputs["authorities"] = authorities["metadata"]["name"]
    if pinned is not None:
        inputs["pinned"] = pinned
    current = not lost and (kept is None or runs in (kept.node_image, settings.node_image))
    return rendered.settled(wanted, inputs, live if current else None)


def _pods(snapshot: Snapshot) -> list[Manifest]:
    return [pod for pod in snapshot.children.pods.values() if label(pod, LABEL_ROLE) == "store"]


def _of_the_hub(setting: str, snapshot: Snapshot) -> str:
    """The operator's setting where the model comes from the Hub; empty elsewhere."""
    return setting if snapshot.pipe.spec.model.source.startswith("hf://") else ""


def _pinned(snapshot: Snapshot, kept: StoredPlan | None, before: Manifest | None) -> str | None:
    """The plan's commit, where the store must be told: its volume was lost and the branch has moved on since. Told
    once, it stays told; telling it earlier would cost a restart in the middle of the download.
    """
    if kept is None or not snapshot.pipe.spec.model.source.startswith("hf://"):
        return None
    commit, report = kept.facts.revision, snapshot.store
    moved = report is not None and report.facts is not None and report.facts.revision != commit
    variables = {item.get("name"): item.get("value") for item in _container_field(before, "env") or ()}
    return commit if moved or variables.get(f"{PREFIX}REVISION") == commit else None


def _container_field(deployment: Manifest | None, field: str) -> Any:
    try:
        return None if deployment is None else deployment["spec"]["template"]["spec"]["containers"][0].get(field)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
