"""Names of children and of their annotations, addresses between members, and where a container finds its files.

Names end in a hash of what they stand for, since pipe `a` with `b-c` and pipe `a-b` with `c` are the same text. The
longest pipe name (40 characters) leaves every name within a DNS label (63), Secrets' excepted. Pods that an older
operator rendered go on using these names: they are part of the contract between versions.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath

from languagepipes_api.names import API_GROUP, RING_PORT, STORE_PORT, Identity

# On a Deployment: hash of what shapes its pods (`decide.inputs`). On a plan's ConfigMap: hash of the spec's fields that
# matter to a plan (`planning.inputs`).
ANNOTATION_INPUTS = f"{API_GROUP}/inputs"
# The Deployment as it was first applied for those inputs (`decide.last_applied`).
ANNOTATION_RENDERED = f"{API_GROUP}/rendered"
# On the Deployments of a replica that goes, until they are gone (`decide.live_replicas`).
ANNOTATION_DRAINING = f"{API_GROUP}/draining"
# On the Deployments of a replica that could not be placed: when it was stopped, how often, why (`decide.give_way`).
ANNOTATION_GAVE_WAY = f"{API_GROUP}/gave-way"
# On a pipe, by people: each new value asks once for the operator's node image. On a plan: the last that was answered.
ANNOTATION_UPGRADE = f"{API_GROUP}/upgrade"

TLS_DIR = PurePosixPath("/etc/languagepipes/tls")
PLAN_DIR = PurePosixPath("/etc/languagepipes/plan")
PLAN_FILE = PLAN_DIR / "plan.json"
KEYS_DIR = PurePosixPath("/etc/languagepipes/keys")
TOKEN_DIR = PurePosixPath("/etc/languagepipes/token")
TOKEN_FILE = TOKEN_DIR / "token"
HUB_CA_DIR = PurePosixPath("/etc/languagepipes/hub-ca")
HUB_CA_FILE = HUB_CA_DIR / "ca.crt"
CACHE_DIR = PurePosixPath("/var/lib/languagepipes/cache")
VOLUMES_DIR = PurePosixPath("/var/lib/languagepipes/volumes")
TMP_DIR = PurePosixPath("/tmp")  # noqa: S108 (an emptyDir of the pod's own)


def member(identity: Identity, plan_hash: str) -> str:
    """The Deployment of one stage or End Model under one plan."""
    return f"{identity.pipe}-{_place(identity)}-{_hash(identity.pipe, _place(identity), plan_hash)}"


def hostname(identity: Identity, plan_hash: str) -> str:
    """A ring member's host name, unique among the pipe's pods."""
    return f"chain-{_place(identity)}-{plan_hash}"


def store(pipe: str, key: str = "") -> str:
    """A store's Deployment and its Service. key: which of the pipe's stores (`decide.stores`); "" is the first one's,
    whose name is older than the keys.
    """
    return _child(pipe, "store", key)


def cache_claim(pipe: str, key: str = "") -> str:
    """That store's PersistentVolumeClaim."""
    return _child(pipe, "cache", key)


def api_service(pipe: str) -> str:
    """The Service that clients use. Its name is in the URL, so it is the pipe's, without a hash."""
    return pipe


def ring_service(pipe: str) -> str:
    """The headless Service under which ring members have their names."""
    return _child(pipe, "ring")


def budget(pipe: str, replica: int, whose: str) -> str:
    """The PodDisruptionBudget of a replica's "stages", or of its "end-model"."""
    return f"{pipe}-{replica}-{whose}-{_hash(pipe, str(replica), whose, 'budget')}"


def plan_config(pipe: str, content_hash: str) -> str:
    """The ConfigMap of a plan with this content (`stored_plans.content_hash`)."""
    return f"{pipe}-plan-{_hash(pipe, 'plan', content_hash)}"


def hub_ca(pipe: str, content_hash: str) -> str:
    """The ConfigMap of these authorities of the Hub."""
    return f"{pipe}-hub-ca-{_hash(pipe, 'hub-ca', content_hash)}"


def ca_secret(pipe: str) -> str:
    """The Secret of the pipe's certificate authority."""
    return _child(pipe, "ca")


def leaf_secret(identity: Identity) -> str:
    """The Secret of one member's certificate. It outlives plans: identities do not name one."""
    return f"{identity.pipe}-{_place(identity)}-tls-{_hash(identity.pipe, _place(identity), 'tls')}"


def policy(pipe: str, place: str) -> str:
    """The NetworkPolicy of "end-model" or "stage-3"."""
    return _child(pipe, place)


def store_policy(pipe: str, key: str = "") -> str:
    """The NetworkPolicy of that store."""
    return _child(pipe, "store", key)


def api_url(pipe: str, namespace: str) -> str:
    """What clients set as their base URL, inside the cluster."""
    return f"http://{api_service(pipe)}.{namespace}.svc/v1"


def ring_address(identity: Identity, plan_hash: str) -> str:
    """Where a ring member's predecessor dials it."""
    return f"{hostname(identity, plan_hash)}.{ring_service(identity.pipe)}.{identity.namespace}.svc:{RING_PORT}"


def store_address(pipe: str, namespace: str, key: str = "") -> str:
    """Where members reach that store."""
    return f"{store(pipe, key)}.{namespace}.svc:{STORE_PORT}"


def _place(identity: Identity) -> str:
    """ "0-stage-3", "0-end-model", "store": short, unique in the pipe."""
    if identity.role == "stage":
        return f"{identity.replica}-stage-{identity.index}"
    return f"{identity.replica}-{identity.role}" if identity.role == "end-model" else identity.role


def _child(pipe: str, what: str, key: str = "") -> str:
    return f"{pipe}-{what}-{_hash(pipe, what, key) if key else _hash(pipe, what)}"


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
