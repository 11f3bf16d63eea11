"""The rotation of a pipe's CA: which CAs members trust, which one issues, who has reported it, and when to go on.

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

This module reads the files of Secrets and makes new keys. It knows nothing of Secrets as manifests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from languagepipes_api.names import TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity

from languagepipes_operator.certificates.authority import KeyPair, new_ca
from languagepipes_operator.certificates.pem import is_ca, is_issued_by, read_certificates, read_pair, uris_of
from languagepipes_operator.observe.snapshot import Snapshot

# The CA that still issues while its successor is published; empty where that key was lost.
PREVIOUS_CERTIFICATE_FILE, PREVIOUS_KEY_FILE = "previous.crt", "previous.key"
# How soon to look again while the rotation waits for members.
ASK_SECONDS = 5
# A pod whose containers do not run reports nothing. Its kubelet has brought its files up to date within this time
# (one sync a minute, and the age of its cache), so that it starts with them.
_KUBELET_SYNC = timedelta(minutes=5)
# A rotation that waits for a member without an answer goes on when waiting longer would cut off everybody.
_LAST_CALL_CA = timedelta(days=30)
_LAST_CALL_LEAF = timedelta(days=7)
_MAX_OLD = 4


@dataclass(frozen=True)
class CaState:
    """The CAs that members trust. newest: the CA that issues, or that will issue. published: the bundle, the issuer
    first. previous: the issuer while `newest` is published, if its key is known.
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
class Leaf:
    """A leaf Secret's certificate and key, which belong together, and the certificates of its ca.crt."""

    pair: KeyPair
    certificate: x509.Certificate
    trusted: tuple[x509.Certificate, ...]


def bundle_hash(bundle: bytes) -> str:
    """What a member reports of its ca.crt (`MemberStatus.bundle`)."""
    return hashlib.sha256(bundle).hexdigest()


# Reading what there is


def read_ca(files: Mapping[str, bytes], now: datetime) -> CaState | None:
    """From the files of the CA's Secret; None unless they are such as the operator writes."""
    newest = valid_ca_pair(files, now)
    if newest is None:
        return None
    published = read_certificates(files.get(TLS_CA_FILE, b""))
    if published.count(newest.x509) != 1 or len(set(published)) != len(published):
        return None
    if not all(is_ca(certificate) for certificate in published):
        return None
    # The newest is first or last. A certificate that has expired is trusted by nobody.
    if newest.x509 not in (published[0], published[-1]):
        return None
    published = tuple(each for each in published if each == newest.x509 or each.not_valid_after_utc > now)
    previous = read_pair(files.get(PREVIOUS_CERTIFICATE_FILE, b""), files.get(PREVIOUS_KEY_FILE, b""))
    if previous is not None and previous.x509 != published[0]:
        previous = None
    ca = CaState(newest, published)
    return replace(ca, previous=previous) if ca.publishing else ca


def recover(snapshot: Snapshot, newest: KeyPair | None, leaves: Sequence[Leaf]) -> CaState:
    """After the CA's Secret was lost or damaged: trust what the members trust, so that they stay connected."""
    now = snapshot.now
    ours = new_ca(snapshot.pipe.namespace, snapshot.pipe.name, now=now)
    current = newest or ours
    in_use = {_issuer_of(leaf) for leaf in leaves}
    trusted = {
        certificate
        for leaf in leaves
        for certificate in leaf.trusted
        if certificate != current.x509
        and is_ca(certificate)
        and certificate.subject == ours.x509.subject
        and certificate.not_valid_after_utc > now
    }
    olds = sorted(
        trusted,
        key=lambda each: (each in in_use, each.not_valid_before_utc, each.serial_number),
        reverse=True,
    )[:_MAX_OLD]
    if in_use <= {current.x509} and newest is not None:
        return CaState(current, (current.x509, *olds))
    return CaState(current, (*olds, current.x509))


def valid_ca_pair(files: Mapping[str, bytes], now: datetime) -> KeyPair | None:
    """The CA in the files of the CA's Secret, if it is valid now and its key belongs to it."""
    pair = read_pair(files.get(TLS_CERTIFICATE_FILE, b""), files.get(TLS_KEY_FILE, b""))
    if pair is None or not is_ca(pair.x509):
        return None
    return pair if pair.x509.not_valid_before_utc <= now < pair.x509.not_valid_after_utc else None


def read_leaf(files: Mapping[str, bytes], identity: Identity) -> Leaf | None:
    """From the files of a member's Secret; None unless certificate and key belong together and name the member."""
    pair = read_pair(files.get(TLS_CERTIFICATE_FILE, b""), files.get(TLS_KEY_FILE, b""))
    if pair is None or uris_of(pair.x509) != [identity.uri]:
        return None
    return Leaf(pair, pair.x509, read_certificates(files.get(TLS_CA_FILE, b"")))


def _issuer_of(leaf: Leaf) -> x509.Certificate | None:
    return next((certificate for certificate in leaf.trusted if is_issued_by(leaf.certificate, certificate)), None)


def problem_of(leaf: Leaf | None, ca: CaState, now: datetime) -> str | None:
    """Why a leaf must be issued anew, or None."""
    if leaf is None:
        return "it could not be read, or its key or its name did not match"
    certificate = leaf.certificate
    if not any(is_issued_by(certificate, issuer) for issuer in ca.issuers):
        return "another CA had issued it"
    if certificate.not_valid_before_utc > now:
        return "it was not valid yet"
    if certificate.not_valid_after_utc <= now:
        return "it had expired"
    # While the issuing key is lost, a valid leaf of the old CA is better than one that not all members trust yet.
    may_renew = not ca.publishing or ca.previous is not None
    if leaf.pair.renew_at() <= now and may_renew:
        return "two thirds of its lifetime were over"
    return None


# The steps of a rotation


def with_successor(ca: CaState, snapshot: Snapshot) -> CaState:
    """Begin: publish a new CA beside the one that issues."""
    newest = new_ca(snapshot.pipe.namespace, snapshot.pipe.name, now=snapshot.now)
    return CaState(newest, (*ca.published, newest.x509), ca.newest)


def next_step(ca: CaState) -> CaState:
    """From publishing to issuing, or from issuing to steady."""
    newest = ca.newest.x509
    if not ca.publishing:
        return CaState(ca.newest, (newest,))
    olds = tuple(certificate for certificate in ca.published if certificate != newest)
    return CaState(ca.newest, (newest, *olds))


def step_text(ca: CaState, waiting_for: tuple[str, ...]) -> str:
    """What the step does, for the log. waiting_for: pods that have not reported the bundle."""
    done = "began to issue from the new CA" if ca.publishing else "stopped trusting the old CA"
    return f"{done} without waiting any longer for {', '.join(waiting_for)}" if waiting_for else done


def not_reported(snapshot: Snapshot, ca: CaState, since: datetime) -> tuple[str, ...]:
    """Pods that may use an older bundle: they reported another one, or none. since: when the bundle was published."""
    wanted = bundle_hash(ca.bundle)
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


def is_last_call(ca: CaState, leaves: Iterable[Leaf | None], now: datetime) -> bool:
    """Whether waiting any longer would cut off members, because a certificate that they need ends soon."""
    newest = ca.newest.x509
    ends = [old.not_valid_after_utc - _LAST_CALL_CA for old in ca.published if old != newest]
    if ca.publishing and ca.previous is None:  # nobody can renew these
        ends += [leaf.certificate.not_valid_after_utc - _LAST_CALL_LEAF for leaf in leaves if leaf is not None]
    return now >= min(ends)
