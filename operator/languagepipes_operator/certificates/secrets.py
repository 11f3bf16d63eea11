"""The certificates of one pipe: which Secrets there must be now, decided from those that there are. Pure, but for keys.

A rotation of the CA takes three forms of the bundle (ca.crt), the same in every Secret. Whose certificate comes first
in it issues:

    [old]        steady
    [old, new]   publishing: all learn to trust the new one; the old one still issues
    [new, old]   issuing: every leaf is of the new one; members that have not yet read theirs are still trusted
    [new]        steady

Each step waits until every running member reports the bundle. As a Secret's files are swapped together, a member that
reports [new, old] has its new leaf too, so nobody is cut off at any moment. Nothing but the Secrets remembers the step.

A CA Secret that was deleted, or broken by hand, is the same rotation with the old key lost: leaves stay as they are
while the new CA is published, and the old certificate is taken from them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from languagepipes_api.names import (
    API_GROUP,
    TLS_CA_FILE,
    TLS_CERTIFICATE_FILE,
    TLS_KEY_FILE,
    Identity,
)

from languagepipes_operator import names
from languagepipes_operator.certificates.authority import Credentials, KeyPair, issue, new_ca
from languagepipes_operator.children import labels
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.snapshot import Snapshot

# Set on the CA Secret by a person: any value that was not there before asks for a new CA.
ROTATE_ANNOTATION = f"{API_GROUP}/rotate"
# Ours: the last value of ROTATE_ANNOTATION that was acted upon, and since when the bundle has its present form.
ROTATED_ANNOTATION = f"{API_GROUP}/rotated"
PUBLISHED_ANNOTATION = f"{API_GROUP}/published-at"

# The CA that still issues while its successor is published; empty where that key was lost.
_PREVIOUS_CERTIFICATE, _PREVIOUS_KEY = "previous.crt", "previous.key"
# How soon to look again while members are waited for.
ASK_SECONDS = 5
# A pod whose containers do not run reports nothing. Its kubelet has brought its files up to date within this time
# (a sync a minute, and the age of its cache), so that it starts with them.
_KUBELET_SYNC = timedelta(minutes=5)
# A rotation that waits for a silent member goes on when waiting would cut off everybody.
_LAST_CALL_CA = timedelta(days=30)
_LAST_CALL_LEAF = timedelta(days=7)
_MAX_OLD = 4


@dataclass(frozen=True)
class PkiDecision:
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


@dataclass(frozen=True)
class _Authority:
    """newest: the CA that issues, or that will. published: the bundle, the issuer first.

    previous: the issuer while `newest` is published, if its key is known.
    """

    newest: KeyPair
    published: tuple[x509.Certificate, ...]
    previous: KeyPair | None = None

    @property
    def steady(self) -> bool:
        return len(self.published) == 1

    @property
    def publishing(self) -> bool:
        return self.published[0] != self.newest.x509

    @property
    def bundle(self) -> bytes:
        return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in self.published)

    @property
    def signer(self) -> KeyPair:
        return self.previous if self.publishing and self.previous is not None else self.newest

    @property
    def issuers(self) -> tuple[x509.Certificate, ...]:
        """Whose leaves are good."""
        return self.published if self.publishing else (self.newest.x509,)


@dataclass(frozen=True)
class _Leaf:
    """A leaf Secret's certificate and key, which belong together, and the certificates of its ca.crt."""

    pair: KeyPair
    certificate: x509.Certificate
    trusted: tuple[x509.Certificate, ...]


def bundle_hash(bundle: bytes) -> str:
    """What a member reports of its ca.crt (`MemberReport.bundle`)."""
    return hashlib.sha256(bundle).hexdigest()


def credentials(snapshot: Snapshot) -> Credentials | None:
    """The operator's client certificate from the CA Secret as it is, before any decision; None if there is none."""
    authority = _read_authority(snapshot.children.secrets.get(names.ca_secret(snapshot.pipe.name)), snapshot.now)
    return None if authority is None else _client(authority, snapshot)


def decide(snapshot: Snapshot, members: Sequence[Identity]) -> PkiDecision:
    """The CA's Secret and one for each of `members` (the store among them).

    `members` must name all that are to live on: what is not named gets no Secret.
    """
    now, live, pipe = snapshot.now, snapshot.children.secrets, snapshot.pipe.name
    ca_secret = live.get(names.ca_secret(pipe))
    leaves = {identity: _read_leaf(live.get(names.leaf_secret(identity)), identity) for identity in members}

    # 1. What is there.
    changes: list[str] = []
    asked = _annotation(ca_secret, ROTATE_ANNOTATION)
    handled = _annotation(ca_secret, ROTATED_ANNOTATION)
    authority = _read_authority(ca_secret, now)
    if authority is None:
        kept = _pair_of_ca(ca_secret, now)
        authority = _recover(snapshot, kept, [leaf for leaf in leaves.values() if leaf])
        changes.append("made the CA" if authority.steady and ca_secret is None else "made the CA's Secret whole again")
        handled = asked if kept is None else handled  # a new CA is what was asked for

    # 2. One step of a rotation, if its time has come.
    waiting_for: tuple[str, ...] = ()
    if authority.steady:
        due = authority.newest.renew_at() <= now
        if due or asked != handled:
            authority = _with_successor(authority, snapshot)
            changes.append(f"began to rotate the CA: {'its time has come' if due else f'{ROTATE_ANNOTATION} was set'}")
            handled = asked
    elif not changes:
        waiting_for = _not_reported(snapshot, authority, _published_at(ca_secret, now))
        if not waiting_for or _last_call(authority, leaves.values(), now):
            changes.append(_step_told(authority, waiting_for))
            authority, waiting_for = _next_step(authority), ()
    changed = bool(changes)

    # 3. The leaves.
    secrets: list[Manifest] = []
    expiries: list[datetime] = []
    renewals: list[datetime] = [authority.newest.renew_at()]
    for identity in members:
        name = names.leaf_secret(identity)
        leaf, problem = leaves[identity], _problem(leaves[identity], authority, now)
        if leaf is None or problem is not None:
            pair = issue(authority.signer, identity, now=now)
            verb = "issued" if name not in live else f"issued anew ({problem})"
            changes.append(f"{verb} the certificate of {identity}")
        else:
            pair = leaf.pair
        expiries.append(pair.x509.not_valid_after_utc)
        renewals.append(pair.renew_at())
        files = {TLS_CA_FILE: authority.bundle, TLS_CERTIFICATE_FILE: pair.certificate, TLS_KEY_FILE: pair.key}
        secrets.append(_secret(snapshot, name, _leaf_labels(identity), files, live.get(name)))

    # 4. What of it is written.
    published_at = now if changed else _published_at(ca_secret, now)
    ca_files = {
        TLS_CA_FILE: authority.bundle,
        TLS_CERTIFICATE_FILE: authority.newest.certificate,
        TLS_KEY_FILE: authority.newest.key,
    }
    if authority.publishing and authority.previous is not None:
        ca_files[_PREVIOUS_CERTIFICATE] = authority.previous.certificate
        ca_files[_PREVIOUS_KEY] = authority.previous.key
    annotations = {PUBLISHED_ANNOTATION: published_at.isoformat(), ROTATED_ANNOTATION: handled}
    ca = _secret(
        snapshot, names.ca_secret(snapshot.pipe.name), labels.labels(pipe, "ca"), ca_files, ca_secret, annotations
    )
    rotating = not authority.steady
    return PkiDecision(
        secrets=(ca, *secrets),
        client=_client(authority, snapshot),
        requeue_at=now + timedelta(seconds=ASK_SECONDS) if rotating else max(now, min(renewals)),
        ca_expires_at=authority.published[0].not_valid_after_utc,
        leaves_expire_at=min(expiries, default=authority.newest.x509.not_valid_after_utc),
        changes=tuple(changes),
        waiting_for=waiting_for,
    )


# The steps of a rotation


def _with_successor(authority: _Authority, snapshot: Snapshot) -> _Authority:
    newest = new_ca(snapshot.pipe.namespace, snapshot.pipe.name, now=snapshot.now)
    return _Authority(newest, (*authority.published, newest.x509), authority.newest)


def _next_step(authority: _Authority) -> _Authority:
    newest = authority.newest.x509
    if not authority.publishing:
        return _Authority(authority.newest, (newest,))
    olds = tuple(certificate for certificate in authority.published if certificate != newest)
    return _Authority(authority.newest, (newest, *olds))


def _step_told(authority: _Authority, waiting_for: tuple[str, ...]) -> str:
    done = "began to issue from the new CA" if authority.publishing else "ceased to trust the old CA"
    return f"{done} without waiting any longer for {', '.join(waiting_for)}" if waiting_for else done


def _not_reported(snapshot: Snapshot, authority: _Authority, since: datetime) -> tuple[str, ...]:
    """Pods that may use an older bundle, or did not say."""
    wanted = bundle_hash(authority.bundle)
    lagging = []
    for name, pod in snapshot.children.pods.items():
        status = pod.get("status") or {}
        over = status.get("phase") in ("Failed", "Succeeded") or pod["metadata"].get("deletionTimestamp")
        if over or not (pod.get("spec") or {}).get("nodeName"):  # without a node it has mounted nothing yet
            continue
        report = snapshot.members.get(name)
        if report is not None and report.bundle == wanted:
            continue
        runs = any("running" in (each.get("state") or {}) for each in status.get("containerStatuses") or ())
        if runs or snapshot.now - since < _KUBELET_SYNC:
            lagging.append(name)
    return tuple(sorted(lagging))


def _last_call(authority: _Authority, leaves: Iterable[_Leaf | None], now: datetime) -> bool:
    newest = authority.newest.x509
    ends = [old.not_valid_after_utc - _LAST_CALL_CA for old in authority.published if old != newest]
    if authority.publishing and authority.previous is None:  # nobody can renew these
        ends += [leaf.certificate.not_valid_after_utc - _LAST_CALL_LEAF for leaf in leaves if leaf is not None]
    return now >= min(ends)


# What is there


def _read_authority(secret: Manifest | None, now: datetime) -> _Authority | None:
    """None unless the Secret is one that a decision may have left."""
    newest = _pair_of_ca(secret, now)
    if secret is None or newest is None:
        return None
    data = _data(secret)
    published = _certificates(data.get(TLS_CA_FILE, b""))
    if published.count(newest.x509) != 1 or len(set(published)) != len(published):
        return None
    if not all(_is_ca(certificate) for certificate in published):
        return None
    # The newest stands at one end; what has ended is trusted by nobody anyway.
    if newest.x509 not in (published[0], published[-1]):
        return None
    published = tuple(each for each in published if each == newest.x509 or each.not_valid_after_utc > now)
    previous = _pair(data.get(_PREVIOUS_CERTIFICATE, b""), data.get(_PREVIOUS_KEY, b""))
    if previous is not None and previous.x509 != published[0]:
        previous = None
    authority = _Authority(newest, published)
    return replace(authority, previous=previous) if authority.publishing else authority


def _recover(snapshot: Snapshot, newest: KeyPair | None, leaves: Sequence[_Leaf]) -> _Authority:
    """The CA's Secret is gone or unusable: trust what the members trust, so that they go on talking."""
    now = snapshot.now
    ours = new_ca(snapshot.pipe.namespace, snapshot.pipe.name, now=now)
    current = newest or ours
    in_use = {_issuer(leaf) for leaf in leaves}
    trusted = {
        certificate
        for leaf in leaves
        for certificate in leaf.trusted
        if certificate != current.x509
        and _is_ca(certificate)
        and certificate.subject == ours.x509.subject
        and certificate.not_valid_after_utc > now
    }
    olds = sorted(
        trusted,
        key=lambda each: (each in in_use, each.not_valid_before_utc, each.serial_number),
        reverse=True,
    )[:_MAX_OLD]
    if in_use <= {current.x509} and newest is not None:
        return _Authority(current, (current.x509, *olds))
    return _Authority(current, (*olds, current.x509))


def _read_leaf(secret: Manifest | None, identity: Identity) -> _Leaf | None:
    """None unless certificate and key belong together, name the member and are of one of the CAs beside them."""
    data = _data(secret)
    pair = _pair(data.get(TLS_CERTIFICATE_FILE, b""), data.get(TLS_KEY_FILE, b""))
    if pair is None or _uris(pair.x509) != [identity.uri]:
        return None
    return _Leaf(pair, pair.x509, _certificates(data.get(TLS_CA_FILE, b"")))


def _issuer(leaf: _Leaf) -> x509.Certificate | None:
    return next((certificate for certificate in leaf.trusted if _issued(leaf.certificate, certificate)), None)


def _problem(leaf: _Leaf | None, authority: _Authority, now: datetime) -> str | None:
    """Why a leaf must be issued anew, or None."""
    if leaf is None:
        return "it was unreadable, or its key or its name was another's"
    certificate = leaf.certificate
    if not any(_issued(certificate, issuer) for issuer in authority.issuers):
        return "it was of another CA"
    if certificate.not_valid_before_utc > now:
        return "it was not valid yet"
    if certificate.not_valid_after_utc <= now:
        return "it had expired"
    # While the issuing key is lost, a good leaf of the old CA is worth more than one that not all trust yet.
    may_renew = not authority.publishing or authority.previous is not None
    if leaf.pair.renew_at() <= now and may_renew:
        return "two thirds of its life were over"
    return None


def _pair_of_ca(secret: Manifest | None, now: datetime) -> KeyPair | None:
    data = _data(secret)
    pair = _pair(data.get(TLS_CERTIFICATE_FILE, b""), data.get(TLS_KEY_FILE, b""))
    if pair is None or not _is_ca(pair.x509):
        return None
    return pair if pair.x509.not_valid_before_utc <= now < pair.x509.not_valid_after_utc else None


def _pair(certificate: bytes, key: bytes) -> KeyPair | None:
    """None unless both can be read and belong together."""
    pair = KeyPair(certificate, key)
    try:
        private = serialization.load_pem_private_key(key, password=None)
        if len(_certificates(certificate)) != 1 or pair.x509.public_key() != private.public_key():
            return None
    except (ValueError, TypeError, x509.InvalidVersion):  # TypeError: the key is encrypted
        return None
    return pair


def _certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Empty if it cannot be read."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        return ()


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and _issued(certificate, certificate)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names_of = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names_of.get_values_for_type(x509.UniformResourceIdentifier)


def _client(authority: _Authority, snapshot: Snapshot) -> Credentials:
    operator = Identity(snapshot.pipe.namespace, snapshot.pipe.name, -1, "operator")
    return Credentials(authority.bundle, issue(authority.signer, operator, now=snapshot.now))


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
    if live is not None and any(_data(live).get(file) != content for file, content in files.items()):
        metadata["resourceVersion"] = live["metadata"].get("resourceVersion", "")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/tls",
        "data": {file: base64.b64encode(content).decode() for file, content in files.items()},
    }


def _data(secret: Manifest | None) -> dict[str, bytes]:
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
        told = datetime.fromisoformat(_annotation(ca_secret, PUBLISHED_ANNOTATION))
        return now if told.tzinfo is None or told > now else told
    except ValueError:
        return now
