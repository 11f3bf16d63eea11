"""Carries out what was decided: children are created, repaired or deleted. Decides only whose an object is.

The first write of a name is a create, so that no object of another owner is ever changed; from then on server-side
apply with the UID that was seen, and deletes with UID and version. So a decision upon an old snapshot ends in
ConflictError, not in damage.

ConflictError       the cluster is not as the snapshot had it: look again
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from languagepipes_api.names import API_GROUP

from languagepipes_operator.apply.drift import differences
from languagepipes_operator.apply.managed_fields import as_applied
from languagepipes_operator.kube.client import FIELD_MANAGER, Kube
from languagepipes_operator.kube.errors import AlreadyExists, Broken, Conflict, Forbidden, Invalid, NotFound
from languagepipes_operator.kube.informer import key_of
from languagepipes_operator.kube.kinds import BUDGET, BY_NAME, CHILDREN, CLAIM, POLICY, Kind, Manifest
from languagepipes_operator.observe.caches import Caches
from languagepipes_operator.observe.ownership import owned_by, title

# Hash of the manifest as last applied: another hash is applied even if the live object holds all of it, since fields
# that are no longer asked for must go.
APPLIED_ANNOTATION = f"{API_GROUP}/applied"
# Answers about this one object: the others can still be written, and the status reports which was refused.
_REFUSALS = (Invalid, Forbidden, Broken)


class ConflictError(Exception):
    """Says what was not as expected."""


@dataclass
class Applied:
    """What one round of writes came to. foreign: objects of other owners under a name that a child needs, by
    "Kind/name".

    leaving: own children that are being deleted, and must be gone before they can be made again. blocking_errors:
    "Kind/name: message" for each child that the API server refuses; non_blocking_errors: the same for what no member
    needs in order to run: a surplus that may not be deleted, a volume that may not grow. writes: "verb Kind/name", in
    order.
    """

    foreign: dict[str, Manifest] = field(default_factory=dict)
    leaving: list[str] = field(default_factory=list)
    blocking_errors: list[str] = field(default_factory=list)
    non_blocking_errors: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)


class Applier:
    """Writes the children of pipes."""

    def __init__(self, kube: Kube, caches: Caches) -> None:
        self._kube = kube
        self._caches = caches
        # Applied, and yet the live object differs: a default that `drift` does not know. By UID, (what was asked,
        # what was there afterwards): not tried again until either changes.
        self._unrepairable: dict[str, tuple[str, str]] = {}

    def pending(self, wanted: Iterable[Manifest], uid: str) -> list[Manifest]:
        """Those that are not as wanted, in the order of writing. Costs no request."""
        found = [marked(manifest) for manifest in wanted]
        found.sort(key=lambda manifest: CHILDREN.index(_kind(manifest)))
        return [manifest for manifest in found if self._differs(manifest, uid)]

    async def write(self, manifests: Sequence[Manifest], uid: str, applied: Applied) -> None:
        """In that order. Raises ConflictError, and KubeError for what the queue's back-off must wait out.

        Once the API server cannot write one object of a kind (a webhook that does not answer takes ten seconds to find
        that out), the others of that kind wait for the next round.
        """
        broken: set[Kind] = set()
        for manifest in manifests:
            if _kind(manifest) in broken:
                continue
            try:
                await self._write(manifest, uid, applied)
            except _REFUSALS as error:
                (applied.blocking_errors if self._is_needed(manifest) else applied.non_blocking_errors).append(
                    f"{title(manifest)}: {error}"
                )
                if isinstance(error, Broken):
                    broken.add(_kind(manifest))

    async def write_in_turn(self, manifests: Sequence[Manifest], uid: str, applied: Applied) -> None:
        """As `write`, but none after one that could not be written."""
        for manifest in manifests:
            before = len(applied.writes)
            await self.write([manifest], uid, applied)
            if len(applied.writes) == before:
                return

    async def prune(self, surplus: Sequence[Manifest], applied: Applied) -> None:
        """Raises ConflictError where one is not what it was when that was decided. What may not be deleted stays."""
        broken: set[Kind] = set()
        for item in surplus:
            kind, metadata = _kind(item), item["metadata"]
            if kind in broken:
                continue
            try:
                await self._kube.delete(
                    kind,
                    metadata["name"],
                    namespace=metadata["namespace"],
                    uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                )
            except Conflict as error:
                raise ConflictError(f"{title(item)} changed before it was deleted") from error
            except _REFUSALS as error:
                applied.non_blocking_errors.append(f"{title(item)}: {error}")
                if isinstance(error, Broken):
                    broken.add(kind)
                continue
            self._caches.of(kind, metadata["namespace"]).drop(key_of(item), metadata["uid"])
            self._unrepairable.pop(metadata["uid"], None)
            applied.writes.append(f"delete {title(item)}")

    def _differs(self, manifest: Manifest, uid: str) -> bool:
        live = self._caches.of(_kind(manifest), manifest["metadata"]["namespace"]).get(key_of(manifest))
        if live is None or not owned_by(live, uid) or "deletionTimestamp" in live["metadata"]:
            return True
        if not differences(manifest, live):
            return False
        return self._unrepairable.get(live["metadata"]["uid"]) != (_hash_of(manifest), _fingerprint(live))

    async def _write(self, manifest: Manifest, uid: str, applied: Applied) -> None:
        kind, metadata = _kind(manifest), manifest["metadata"]
        cache = self._caches.of(kind, metadata["namespace"])
        live = cache.get(key_of(manifest))
        if live is None:
            try:
                cache.remember(await self._kube.create(manifest, kind))
                applied.writes.append(f"create {title(manifest)}")
                return
            except AlreadyExists:
                live = await self._look(manifest, kind)
                if owned_by(live, uid):
                    # Ours: an earlier try that went unheard, or its labels were taken away.
                    cache.remember(live)
                    raise ConflictError(f"{title(manifest)} is there already") from None
        if not owned_by(live, uid):
            applied.foreign[title(manifest)] = live
            return
        if "deletionTimestamp" in live["metadata"]:
            applied.leaving.append(title(manifest))
            return
        asked = {**manifest, "metadata": {**metadata, "uid": live["metadata"]["uid"]}}
        try:
            await self._count_as_applied(live, kind)
            after = await self._kube.apply(asked, kind)
        except Conflict as error:
            raise ConflictError(f"{title(manifest)} changed before it was applied") from error
        cache.remember(after)
        applied.writes.append(f"apply {title(manifest)}")
        self._unrepairable.pop(after["metadata"]["uid"], None)
        if differences(manifest, after):
            self._unrepairable[after["metadata"]["uid"]] = (_hash_of(manifest), _fingerprint(after))

    async def _count_as_applied(self, live: Manifest, kind: Kind) -> None:
        """Count what our create set as applied, so that the next apply removes what is no longer wanted.

        Raises Conflict, also where the object is another one by now.
        """
        now = await self._look(live, kind)
        entries = as_applied(now["metadata"].get("managedFields") or (), FIELD_MANAGER)
        if entries is None or now["metadata"]["uid"] != live["metadata"]["uid"]:
            return  # the apply reports that it is another object
        operations = [
            {"op": "replace", "path": "/metadata/managedFields", "value": entries},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": now["metadata"]["resourceVersion"]},
        ]
        await self._kube.patch(kind, now["metadata"]["name"], operations, namespace=now["metadata"]["namespace"])

    def _is_needed(self, manifest: Manifest) -> bool:
        """Whether members cannot run as asked without it. A volume that is there and may not grow serves as it is."""
        kind = _kind(manifest)
        exists = self._caches.of(kind, manifest["metadata"]["namespace"]).get(key_of(manifest)) is not None
        return not (kind in (BUDGET, POLICY) or (kind is CLAIM and exists))

    async def _look(self, manifest: Manifest, kind: Kind) -> Manifest:
        metadata = manifest["metadata"]
        try:
            return await self._kube.get(kind, metadata["name"], namespace=metadata["namespace"])
        except NotFound as error:
            raise ConflictError(f"{title(manifest)} went away just now") from error


def marked(manifest: Manifest) -> Manifest:
    """With the hash of itself; what only guards the write is outside it."""
    metadata = manifest["metadata"]
    plain = {**manifest, "metadata": {key: value for key, value in metadata.items() if key != "resourceVersion"}}
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: _digest(plain)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _kind(item: Manifest) -> Kind:
    return BY_NAME[item["kind"]]


def _hash_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["annotations"][APPLIED_ANNOTATION])


def _fingerprint(live: Manifest) -> str:
    """Of everything that a repair could change: another one is worth another try."""
    plain = {key: value for key, value in live.items() if key != "status"}
    plain["metadata"] = {
        key: value
        for key, value in live["metadata"].items()
        if key not in ("resourceVersion", "generation", "managedFields")
    }
    return _digest(plain)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
