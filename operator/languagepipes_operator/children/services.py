"""Services: the API for clients, names for the ring, the store for members and the operator."""

from __future__ import annotations

from typing import Any

from languagepipes_api.names import API_PORT, LABEL_ROLE, RING_PORT, STORE_PORT

from languagepipes_operator import names
from languagepipes_operator.children.labels import labels, labels_of_pipe, metadata, store_labels
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot


def api_service(snapshot: Snapshot, *, publish_unready: bool) -> Manifest:
    """Every End Model that is ready, of any replica and plan: ready means that its ring's health check passed.

    publish_unready: and those that are not.
    """
    return _service(
        snapshot,
        names.api_service(snapshot.pipe.name),
        labels(snapshot.pipe.name, "api"),
        {**labels_of_pipe(snapshot.pipe.name), LABEL_ROLE: "end-model"},
        [{"name": "http", "port": 80, "targetPort": API_PORT, "protocol": "TCP", "appProtocol": "http"}],
        type="ClusterIP",
        **({"publishNotReadyAddresses": True} if publish_unready else {}),
    )


def ring_service(snapshot: Snapshot) -> Manifest:
    """Headless: members find each other by host name, ready or not, since a ring that is down must close again."""
    return _service(
        snapshot,
        names.ring_service(snapshot.pipe.name),
        labels(snapshot.pipe.name, "ring"),
        labels_of_pipe(snapshot.pipe.name),
        [{"name": "ring", "port": RING_PORT, "targetPort": RING_PORT, "protocol": "TCP"}],
        clusterIP="None",
        publishNotReadyAddresses=True,
    )


def store_service(snapshot: Snapshot, key: str) -> Manifest:
    """Also while the store is not ready: it reports its progress from the start. key: which of the pipe's stores."""
    own = store_labels(snapshot.pipe.name, key)
    return _service(
        snapshot,
        names.store(snapshot.pipe.name, key),
        own,
        own,
        [{"name": "store", "port": STORE_PORT, "targetPort": STORE_PORT, "protocol": "TCP"}],
        type="ClusterIP",
        publishNotReadyAddresses=True,
    )


def _service(
    snapshot: Snapshot,
    name: str,
    own: dict[str, str],
    selector: dict[str, str],
    ports: list[dict[str, Any]],
    **more: Any,
) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(snapshot, name, own),
        "spec": {"selector": selector, "ports": ports, **more},
    }
