"""The certificate Secrets of one pipe: which there must be now, decided from those that there are.

The CA's Secret, and one for each member with its leaf and the bundle of CAs that it trusts. Pure, except for new keys.
How a CA is rotated is in `rotation`; this module knows Secrets as manifests.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from languagepipes_api.names import (
    API_GROUP,
    TLS_CA_FILE,
    TLS_CERTIFICATE_FILE,
    TLS_KEY_FILE,
    Identity,
)

from languagepipes_operator import names
from languagepipes_operator.certificates.authority import Credentials, issue
from languagepipes_operator.certificates.rotation import (
    ASK_SECONDS,
    PREVIOUS_CERTIFICATE_FILE,
    PREVIOUS_KEY_FILE,
    CaState,
    is_last_call,
    next_step,
    not_reported,
    problem_of,
    read_ca,
    read_leaf,
    recover,
    step_text,
    valid_ca_pair,
    with_successor,
)
from languagepipes_operator.children import labels
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot

# Set on the CA Secret by a person: any value that was not there before asks for a new CA.
ROTATE_ANNOTATION = f"{API_GROUP}/rotate"
# Ours: the last value of ROTATE_ANNOTATION that was acted upon, and since when the bundle has its present form.
ROTATED_ANNOTATION = f"{API_GROUP}/rotated"
PUBLISHED_ANNOTATION = f"{API_GROUP}/published-at"


@dataclass(frozen=True)
class SecretsDecision:
    """The Secrets as they must be, the CA's first: write them in this order, and none if the first fails.

    What changes carries its live object's `resourceVersion`, so that no decision upon an old snapshot is written.
    changes: a sentence for each Secret that is made anew. waiting_for: pods that have not reported the bundle, while
    the CA is rotated: ask members for their /status until it is empty. requeue_at: when the next step may be due.
    """

    secrets: tuple[Manifest, ...]
    client: Credentials
    requeue_at: datetime
    ca_expires_at: datetime
    leaves_expire_at: datetime
    changes: tuple[str, ...] = ()
    waiting_for: tuple[str, ...] = ()


def credentials(snapshot: Snapshot) -> Credentials | None:
    """The operator's client certificate from the CA Secret as it is, before any decision; None if there is none."""
    ca = read_ca(_files(snapshot.children.secrets.get(names.ca_secret(snapshot.pipe.name))), snapshot.now)
    return None if ca is None else _client(ca, snapshot)


def decide(snapshot: Snapshot, members: Sequence[Identity]) -> SecretsDecision:
    """The CA's Secret and one for each of `members` (the store among them).

    `members` must name all that are to live on: what is not named gets no Secret.
    """
    now, live, pipe = snapshot.now, snapshot.children.secrets, snapshot.pipe.name
    ca_secret = live.get(names.ca_secret(pipe))
    leaves = {identity: read_leaf(_files(live.get(names.leaf_secret(identity))), identity) for identity in members}

    # 1. What is there.
    changes: list[str] = []
    asked = _annotation(ca_secret, ROTATE_ANNOTATION)
    handled = _annotation(ca_secret, ROTATED_ANNOTATION)
    ca = read_ca(_files(ca_secret), now)
    if ca is None:
        kept = valid_ca_pair(_files(ca_secret), now)
        ca = recover(snapshot, kept, [leaf for leaf in leaves.values() if leaf])
        changes.append("made the CA" if ca.steady and ca_secret is None else "repaired the CA's Secret")
        handled = asked if kept is None else handled  # a new CA is what was asked for

    # 2. One step of a rotation, if its time has come.
    waiting_for: tuple[str, ...] = ()
    if ca.steady:
        due = ca.newest.renew_at() <= now
        if due or asked != handled:
            ca = with_successor(ca, snapshot)
            why = "two thirds of its lifetime were over" if due else f"{ROTATE_ANNOTATION} was set"
            changes.append(f"began to rotate the CA: {why}")
            handled = asked
    elif not changes:
        waiting_for = not_reported(snapshot, ca, _published_at(ca_secret, now))
        if not waiting_for or is_last_call(ca, leaves.values(), now):
            changes.append(step_text(ca, waiting_for))
            ca, waiting_for = next_step(ca), ()
    changed = bool(changes)

    # 3. The leaves.
    secrets: list[Manifest] = []
    expiries: list[datetime] = []
    renewals: list[datetime] = [ca.newest.renew_at()]
    for identity in members:
        name = names.leaf_secret(identity)
        leaf, problem = leaves[identity], problem_of(leaves[identity], ca, now)
        if leaf is None or problem is not None:
            pair = issue(ca.signer, identity, now=now)
            verb = "issued" if name not in live else f"issued anew ({problem})"
            changes.append(f"{verb} the certificate of {identity}")
        else:
            pair = leaf.pair
        expiries.append(pair.x509.not_valid_after_utc)
        renewals.append(pair.renew_at())
        files = {TLS_CA_FILE: ca.bundle, TLS_CERTIFICATE_FILE: pair.certificate, TLS_KEY_FILE: pair.key}
        secrets.append(_secret(snapshot, name, _leaf_labels(identity), files, live.get(name)))

    # 4. What of it is written.
    published_at = now if changed else _published_at(ca_secret, now)
    ca_files = {
        TLS_CA_FILE: ca.bundle,
        TLS_CERTIFICATE_FILE: ca.newest.certificate,
        TLS_KEY_FILE: ca.newest.key,
    }
    if ca.publishing and ca.previous is not None:
        ca_files[PREVIOUS_CERTIFICATE_FILE] = ca.previous.certificate
        ca_files[PREVIOUS_KEY_FILE] = ca.previous.key
    annotations = {PUBLISHED_ANNOTATION: published_at.isoformat(), ROTATED_ANNOTATION: handled}
    secret_of_ca = _secret(
        snapshot, names.ca_secret(snapshot.pipe.name), labels.labels(pipe, "ca"), ca_files, ca_secret, annotations
    )
    rotating = not ca.steady
    return SecretsDecision(
        secrets=(secret_of_ca, *secrets),
        client=_client(ca, snapshot),
        requeue_at=now + timedelta(seconds=ASK_SECONDS) if rotating else max(now, min(renewals)),
        ca_expires_at=ca.published[0].not_valid_after_utc,
        leaves_expire_at=min(expiries, default=ca.newest.x509.not_valid_after_utc),
        changes=tuple(changes),
        waiting_for=waiting_for,
    )


def _client(ca: CaState, snapshot: Snapshot) -> Credentials:
    operator = Identity(snapshot.pipe.namespace, snapshot.pipe.name, -1, "operator")
    return Credentials(ca.bundle, issue(ca.signer, operator, now=snapshot.now))


# Secrets as manifests


def _secret(
    snapshot: Snapshot,
    name: str,
    child_labels: dict[str, str],
    files: Mapping[str, bytes],
    live: Manifest | None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    metadata = labels.metadata(snapshot, name, child_labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    if live is not None and any(_files(live).get(file) != content for file, content in files.items()):
        metadata["resourceVersion"] = live["metadata"].get("resourceVersion", "")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/tls",
        "data": {file: base64.b64encode(content).decode() for file, content in files.items()},
    }


def _files(secret: Manifest | None) -> dict[str, bytes]:
    """A Secret's files; one that is not base64 is left out."""
    files = {}
    for name, text in ((secret or {}).get("data") or {}).items():
        try:
            files[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError, TypeError):
            continue
    return files


def _leaf_labels(identity: Identity) -> dict[str, str]:
    return labels.labels(
        identity.pipe,
        identity.role,
        replica=identity.replica if identity.replica >= 0 else None,
        stage=identity.index if identity.role == "stage" else None,
    )


def _annotation(secret: Manifest | None, name: str) -> str:
    return str(((secret or {}).get("metadata", {}).get("annotations") or {}).get(name, ""))


def _published_at(ca_secret: Manifest | None, now: datetime) -> datetime:
    try:
        published = datetime.fromisoformat(_annotation(ca_secret, PUBLISHED_ANNOTATION))
        return now if published.tzinfo is None or published > now else published
    except ValueError:
        return now
