"""A pipe's Secrets, the pods that mount them and a clock that jumps. Decisions are the operator's; handshakes are real.

Pods read their files through the node's own TlsFiles, from a directory that is swapped as a kubelet swaps it.
OpenSSL looks at the machine's clock alone, so times are left out there and checked here against the pipe's clock.
"""

from __future__ import annotations

import base64
import os
import shutil
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import Identity
from languagepipes_api.spec import LanguagePipe
from languagepipes_node.net.tls import TlsFiles, peer_identity
from languagepipes_operator import names
from languagepipes_operator.certificates.pem import is_issued_by
from languagepipes_operator.certificates.rotation import bundle_hash
from languagepipes_operator.certificates.secrets import SecretsDecision, decide
from languagepipes_operator.observe.snapshot import Children, Snapshot

STORE = Identity("default", "qwen3", -1, "store")
END = Identity("default", "qwen3", 0, "end-model")
FIRST = Identity("default", "qwen3", 0, "stage", 1)
SECOND = Identity("default", "qwen3", 0, "stage", 2)
MEMBERS = (STORE, END, FIRST, SECOND)
CA = names.ca_secret("qwen3")

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
_RAW = {
    "apiVersion": "languagepipes.io/v1alpha1",
    "kind": "LanguagePipe",
    "metadata": {"name": "qwen3", "namespace": "default", "uid": "1234"},
    "spec": {"model": {"source": "hf://Qwen/Qwen3-8B"}, "stages": {"count": 2}},
}


@dataclass
class Pod:
    """A running pod with its Secret's files. answers: whether its /status can be had."""

    identity: Identity
    directory: Path
    answers: bool = True
    running: bool = True
    generation: int = 0

    @property
    def name(self) -> str:
        return names.leaf_secret(self.identity) + "-pod"

    def sync(self, files: dict[str, bytes]) -> None:
        """Bring the files up to date as a kubelet does: a new directory, then one symbolic link turned over."""
        self.generation += 1
        fresh = self.directory / f"..{self.generation}"
        fresh.mkdir(parents=True)
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        os.symlink(fresh.name, self.directory / "..data_tmp")
        old = os.readlink(self.directory / "..data") if self.generation > 1 else None
        os.replace(self.directory / "..data_tmp", self.directory / "..data")
        for name in files:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(Path("..data") / name)
        if old is not None:
            shutil.rmtree(self.directory / old)

    def files(self) -> bytes:
        return b"".join((self.directory / name).read_bytes() for name in ("ca.crt", "tls.crt", "tls.key"))

    @property
    def bundle(self) -> bytes:
        return (self.directory / "ca.crt").read_bytes()

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.directory / "tls.crt").read_bytes())

    def manifest(self) -> dict[str, Any]:
        state = {"running": {}} if self.running else {"waiting": {"reason": "CrashLoopBackOff"}}
        return {
            "metadata": {"name": self.name},
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "containerStatuses": [{"name": "node", "state": state}]},
        }


@dataclass
class MountedCertificates:
    folder: Path
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    secrets: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[Identity, Pod] = field(default_factory=dict)
    members: tuple[Identity, ...] = MEMBERS
    written: list[str] = field(default_factory=list)
    started: int = 0
    shaken: set[tuple[bytes, bytes]] = field(default_factory=set)

    def snapshot(self) -> Snapshot:
        pods = self.pods.values()
        return Snapshot(
            pipe=LanguagePipe.model_validate(_RAW),
            raw=_RAW,
            now=self.now,
            children=Children(secrets=dict(self.secrets), pods={pod.name: pod.manifest() for pod in pods}),
            members={
                pod.name: MemberStatus(state="ready", bundle=bundle_hash(pod.bundle))
                for pod in pods
                if pod.answers and pod.running
            },
        )

    def reconcile(self) -> SecretsDecision:
        """Decide and write, as the API server would hold it: what others added stays."""
        decision = decide(self.snapshot(), self.members)
        for manifest in decision.secrets:
            name = manifest["metadata"]["name"]
            live = self.secrets.get(name)
            before = (live or {}).get("data", {})
            if live is None or any(before.get(key) != value for key, value in manifest["data"].items()):
                self.written.append(name)
            version = str(len(self.written))
            metadata = {
                **(live or {}).get("metadata", {}),
                **manifest["metadata"],
                "annotations": {
                    **((live or {}).get("metadata", {}).get("annotations") or {}),
                    **manifest["metadata"].get("annotations", {}),
                },
                "resourceVersion": version,
            }
            self.secrets[name] = {**manifest, "metadata": metadata}
        return decision

    def start(self, *identities: Identity) -> None:
        for identity in identities or self.members:
            self.started += 1
            self.pods[identity] = Pod(identity, self.folder / f"{names.leaf_secret(identity)}-{self.started}")
            self.sync(identity)

    def sync(self, *identities: Identity) -> None:
        for identity in identities or tuple(self.pods):
            self.pods[identity].sync(self.files(names.leaf_secret(identity)))

    def files(self, secret: str) -> dict[str, bytes]:
        return {name: base64.b64decode(text) for name, text in self.secrets[secret]["data"].items()}

    def pass_time(self, **span: float) -> None:
        self.now += timedelta(**span)

    def sleep_until_year(self, years: float) -> None:
        """All pods end, the clock jumps, all start again."""
        self.pods.clear()
        self.now += timedelta(days=365 * years) - (self.now - datetime(2026, 1, 1, tzinfo=UTC))
        self.reconcile()
        self.start()

    def annotate(self, secret: str, **annotations: str) -> None:
        metadata = self.secrets[secret]["metadata"]
        held = {**(metadata.get("annotations") or {}), **annotations}
        self.secrets[secret] = {**self.secrets[secret], "metadata": {**metadata, "annotations": held}}

    def edit(self, secret: str, **files: bytes) -> None:
        """Change files, named with _ for the dot."""
        data = {name.replace("_", "."): base64.b64encode(content).decode() for name, content in files.items()}
        self.secrets[secret] = {**self.secrets[secret], "data": {**self.secrets[secret]["data"], **data}}

    @property
    def bundle(self) -> tuple[x509.Certificate, ...]:
        return tuple(x509.load_pem_x509_certificates(self.files(CA)["ca.crt"]))

    def roll(self, *, operator: bool = True) -> SecretsDecision:
        """Reconcile, then let the pods read their files one by one; everybody can talk to everybody all the while.

        operator: the operator can, too. Where the CA's key was lost, nobody could issue what all trust already.
        """
        decision = self.reconcile()
        self.all_talk(decision if operator else None)
        for identity in self.pods:
            self.sync(identity)
            self.all_talk(decision if operator else None)
        self.all_talk(decision)
        return decision

    def roll_after_break(self) -> SecretsDecision:
        """Reconcile, then let all pods read their files: what was broken by hand was cut off before."""
        decision = self.reconcile()
        self.sync()
        self.all_talk(decision)
        return decision

    def all_talk(self, decision: SecretsDecision | None = None) -> None:
        """A handshake from each pod to each other one, and from the operator to each."""
        operator = None if decision is None else self.operator(decision)
        for server in self.pods.values():
            for client in self.pods.values():
                if client is not server:
                    self.talk(client, server)
            if operator is not None:
                self.talk(operator, server)

    def operator(self, decision: SecretsDecision) -> Pod:
        credentials = decision.client
        identity = Identity("default", "qwen3", -1, "operator")
        pod = Pod(identity, self.folder / "operator" / f"{len(list((self.folder).glob('operator/*')))}")
        pod.sync(
            {"ca.crt": credentials.bundle, "tls.crt": credentials.leaf.certificate, "tls.key": credentials.leaf.key}
        )
        return pod

    def talk(self, client: Pod, server: Pod) -> None:
        for pod in (client, server):
            leaf = pod.leaf
            assert leaf.not_valid_before_utc <= self.now < leaf.not_valid_after_utc, f"{pod.identity} at {self.now}"
        for one, other in ((client, server), (server, client)):
            trusted = x509.load_pem_x509_certificates(one.bundle)
            issuers = [each for each in trusted if is_issued_by(other.leaf, each)]
            assert any(each.not_valid_before_utc <= self.now < each.not_valid_after_utc for each in issuers), (
                f"{one.identity} does not trust {other.identity}"
            )
        pair = (client.files(), server.files())
        if pair not in self.shaken:  # the same files again would tell nothing new
            shake_hands(client, server)
            self.shaken.add(pair)


def shake_hands(client: Pod, server: Pod) -> None:
    """TLS 1.3 through memory, with the contexts of the node. Raises ssl.SSLError if one refuses the other."""
    contexts = TlsFiles(client.directory).client_context(), TlsFiles(server.directory).server_context()
    for context in contexts:
        context.verify_flags |= _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    dialled = contexts[0].wrap_bio(to_client, to_server, server_side=False)
    accepted = contexts[1].wrap_bio(to_server, to_client, server_side=True)
    done = set[int]()
    for _ in range(10):
        for place, side in enumerate((dialled, accepted)):
            if place not in done:
                try:
                    side.do_handshake()
                    done.add(place)
                except ssl.SSLWantReadError:
                    pass
    assert done == {0, 1}
    assert peer_identity(dialled) == server.identity
    assert peer_identity(accepted) == client.identity
