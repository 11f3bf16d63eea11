"""A weights store: its Deployment, its volume and the Hub's authorities. Plans of one model share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from languagepipes_api import source as sources
from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import STORE_PORT, TELEMETRY_PORT

from languagepipes_operator import names
from languagepipes_operator.children import pods, quantities, resources
from languagepipes_operator.children.labels import labels, metadata, store_labels
from languagepipes_operator.decide import inputs
from languagepipes_operator.decide.decision import DeploymentDecision
from languagepipes_operator.decide.inputs import hub_authorities_name, hub_mirror, store_template
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot
from languagepipes_operator.settings import OperatorSettings

_GRACE_SECONDS = 20


def cache_claim(snapshot: Snapshot, key: str) -> Manifest | None:
    """The volume that keeps what this store fetched; None where the spec asks for none. A volume that was made larger
    stays so, since volumes do not shrink.
    """
    pipe = snapshot.pipe
    cache, name = pipe.spec.cache, names.cache_claim(pipe.name, key)
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
        "metadata": metadata(snapshot, name, store_labels(pipe.name, key)),
        "spec": spec,
    }


def hub_authorities(snapshot: Snapshot, settings: OperatorSettings) -> Manifest | None:
    """The ConfigMap of the authorities that the Hub may be signed by; None where there are none. It never changes:
    other authorities are another ConfigMap.
    """
    pipe = snapshot.pipe
    name = hub_authorities_name(pipe, settings)
    if name is None:
        return None
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(snapshot, name, labels(pipe.name, "store")),
        "immutable": True,
        "data": {names.HUB_CA_FILE.name: inputs.hub_authorities(pipe, settings)},
    }


def store_deployment(
    snapshot: Snapshot, decided: DeploymentDecision, settings: OperatorSettings, *, revision: str | None
) -> Manifest:
    """revision: of the model; None for a source that has none."""
    pipe = snapshot.pipe
    model = pipe.spec.model
    template = store_template(pipe.spec)
    token = model.token_secret_ref
    cached = pipe.spec.cache is not None
    on_disk = None if pipe.spec.store is None else pipe.spec.store.ephemeral_storage
    disk = None if on_disk is None else quantities.canonical(on_disk)
    mirror = hub_mirror(pipe, settings)
    authorities = hub_authorities_name(pipe, settings)
    source = sources.parse_source(model.source)
    files = [
        pods.secret_files("tls", names.leaf_secret(decided.identity), str(names.TLS_DIR)),
        pods.Files(
            "cache",
            {"persistentVolumeClaim": {"claimName": names.cache_claim(pipe.name, decided.store_key)}}
            if cached
            else {"emptyDir": {} if disk is None else {"sizeLimit": disk}},
            str(names.CACHE_DIR),
            read_only=False,
        ),
    ]
    if token is not None:
        files.append(
            pods.secret_files("token", token.name, str(names.TOKEN_DIR), key=token.key, as_file=names.TOKEN_FILE.name)
        )
    if authorities is not None:
        files.append(pods.Files("hub-ca", {"configMap": {"name": authorities}}, str(names.HUB_CA_DIR)))
    if source.scheme == "pvc":
        claim = {"persistentVolumeClaim": {"claimName": source.location, "readOnly": True}}
        files.append(pods.Files("model", claim, str(names.VOLUMES_DIR / source.location)))
    container = pods.Container(
        image=decided.image,
        pull_policy=settings.image_pull_policy,
        settings=MemberSettings(
            role="store",
            namespace=pipe.namespace,
            pipe=pipe.name,
            tls_dir=Path(names.TLS_DIR),
            telemetry_listen=f"{settings.every_address}:{TELEMETRY_PORT}",
            store_listen=f"{settings.every_address}:{STORE_PORT}",
            source=model.source,
            revision=revision,
            dtype=model.dtype,
            quantization=model.quantization,
            cache_dir=Path(names.CACHE_DIR),
            token_file=None if token is None else Path(names.TOKEN_FILE),
            hub_ca_file=None if authorities is None else Path(names.HUB_CA_FILE),
            volumes_dir=Path(names.VOLUMES_DIR) if source.scheme == "pvc" else None,
        ),
        resources=resources.store_resources(template.get("resources", {}), ephemeral_storage=disk),
        ports={"store": STORE_PORT, "telemetry": TELEMETRY_PORT},
        files=files,
        environment={**({"HF_ENDPOINT": mirror} if mirror else {}), **inputs.proxy_variables(pipe, settings)},
    )
    own = store_labels(pipe.name, decided.store_key)
    pod = pods.pod_spec(
        container,
        template=template,
        grace_seconds=_GRACE_SECONDS,
        placement={"affinity": template["affinity"]} if "affinity" in template else {},
        host={},
        settings=settings,
    )
    return pods.deployment(snapshot, decided.name, labels=own, selector=own, pod=pod, template=template)


def _largest(asked: int | str, live: Manifest | None) -> str:
    requested = {} if live is None else live["spec"].get("resources", {}).get("requests", {})
    there = requested.get("storage")
    if there is not None and quantities.value_of(there) > quantities.value_of(asked):
        return str(there)
    return quantities.canonical(asked)
