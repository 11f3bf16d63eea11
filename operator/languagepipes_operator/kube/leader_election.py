"""Who of several operators acts: the holder of a coordination.k8s.io Lease.

As client-go's leader election (k8s.io/client-go/tools/leaderelection, with ReleaseOnCancel): nobody's clock is compared
with another's; a candidate takes over when it has seen no renewal for the whole lease, by its own clock. A holder that
cannot renew stops well before that, and one that is told to end gives the lease back once it has stopped acting. Why
kubernetes.aio.leaderelection is not used: docs/decisions/0003-operator-on-kubernetes.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from languagepipes_operator.kube.client import Kube
from languagepipes_operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from languagepipes_operator.kube.kinds import LEASE, Manifest

log = logging.getLogger(__name__)

# Within which a lease is given back: a pod that is told to end has 30 s.
_RELEASE_SECONDS = 5.0
_RELEASE_RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Timing:
    """In seconds. lease: nobody else acts for so long after a renewal. stop: the holder ceases to act so long after
    the last renewal that was answered. retry: between tries.
    """

    lease: float = 15.0
    stop: float = 12.0
    retry: float = 2.0


class Leadership:
    """One candidate."""

    def __init__(self, kube: Kube, *, namespace: str, name: str, identity: str, timing: Timing | None = None) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._leads_until = 0.0
        # Whether the lease may be ours by the API server: a write of ours may have arrived whose answer did not.
        self._may_hold = False
        # The renewal that was seen last, and when, by our clock.
        self._seen: tuple[str, str, int] | None = None
        self._seen_at = 0.0

    @property
    def leads(self) -> bool:
        """Asked before each write: whether the lease certainly is still ours."""
        return time.monotonic() < self._leads_until

    async def run(self, act: Callable[[], Awaitable[None]]) -> None:
        """Run `act` while the lease is held, cancel it when it is lost, and stand by again. Until cancelled.

        Ends with an error only if `act` does.
        """
        try:
            while True:
                await self._acquire()
                await self._lead(act)
        finally:
            await self._release()

    async def _acquire(self) -> None:
        told = False
        while not await self._try():
            if not told and self._seen is not None:
                log.info("standing by: %s leads", self._seen[0] or "nobody")
                told = True
            await asyncio.sleep(self._timing.retry)
        log.info("leading as %s", self._identity)

    async def _lead(self, act: Callable[[], Awaitable[None]]) -> None:
        acting = asyncio.ensure_future(act())
        renewing = asyncio.create_task(self._renew())
        try:
            await asyncio.wait((acting, renewing), return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                acting.result()
                raise RuntimeError("acting ended by itself")
            log.warning("the lease is lost: nothing is written until it is held again")
        finally:
            for task in (acting, renewing):
                task.cancel()
            await asyncio.gather(acting, renewing, return_exceptions=True)

    async def _renew(self) -> None:
        """Ends when the lease is lost."""
        while self.leads:
            await asyncio.sleep(self._timing.retry)
            # No longer than the time in which an answer is worth something.
            left = self._leads_until - time.monotonic()
            try:
                await asyncio.wait_for(self._try(), max(0.0, left))
            except TimeoutError:
                return

    async def _try(self) -> bool:
        """Take or renew the lease; whether it is ours now. Errors count as no."""
        asked_at = time.monotonic()
        try:
            taken = await self._take(asked_at)
        except KubeError as error:
            log.warning("the lease %s/%s: %s", self._namespace, self._name, error)
            return self.leads
        # From the asking, not from the answer: the API server may have written it at any moment in between.
        self._leads_until = asked_at + self._timing.stop if taken else 0.0
        return taken

    async def _take(self, now: float) -> bool:
        try:
            lease = await self._kube.get(LEASE, self._name, namespace=self._namespace)
        except NotFound:
            self._may_hold = True
            try:
                await self._kube.create(self._manifest({}, taken=True), LEASE)
            except AlreadyExists:
                return False
            return True
        spec = lease.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        seen = (holder, str(spec.get("renewTime")), int(spec.get("leaseTransitions") or 0))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        lasts = float(spec.get("leaseDurationSeconds") or self._timing.lease)
        if holder not in ("", self._identity) and now < self._seen_at + lasts:
            self._may_hold = False
            return False
        self._may_hold = True
        try:
            written = await self._kube.replace(self._manifest(lease, taken=holder != self._identity), LEASE)
        except Conflict:
            return False
        spec = written["spec"]
        self._seen = (self._identity, str(spec.get("renewTime")), int(spec.get("leaseTransitions") or 0))
        self._seen_at = now
        return True

    async def _release(self) -> None:
        """So that another takes over at once. What fails here, the end of the lease makes good."""
        self._leads_until = 0.0
        if not self._may_hold:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                while not await self._give_back():
                    await asyncio.sleep(_RELEASE_RETRY_SECONDS)
        except (KubeError, TimeoutError) as error:
            log.warning("the lease could not be given back: %s", error or "no answer in time")

    async def _give_back(self) -> bool:
        """One try; False if a renewal that was cancelled on its way arrived in between."""
        try:
            lease = await self._kube.get(LEASE, self._name, namespace=self._namespace)
        except NotFound:
            return True
        if (lease.get("spec") or {}).get("holderIdentity") != self._identity:
            return True
        now = _now()
        # As client-go leaves it behind: no holder, and a duration that the API server accepts.
        lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "acquireTime": now, "renewTime": now}
        try:
            await self._kube.replace(lease, LEASE)
        except Conflict:
            return False
        self._may_hold = False
        log.info("the lease is given back")
        return True

    def _manifest(self, lease: Manifest, *, taken: bool) -> Manifest:
        now = _now()
        before = lease.get("spec") or {}
        metadata = lease.get("metadata") or {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(self._timing.lease),
                "acquireTime": now if taken else before.get("acquireTime", now),
                "renewTime": now,
                "leaseTransitions": int(before.get("leaseTransitions") or 0) + (1 if taken and before else 0),
            },
        }


def _now() -> str:
    """A metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
