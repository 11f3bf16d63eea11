"""A namespace with a real operator process that serves it, and what a kubelet would do for its pods, played by hand."""

from __future__ import annotations

import base64
import functools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from cluster import ControlPlane
from languagepipes_api.names import LABEL_REPLICA, LABEL_ROLE

from support import waiting
from support.metrics_page import metric
from support.paths import CRD

Object = dict[str, Any]
Objects = list[Object]
PIPES = "/apis/languagepipes.io/v1alpha1/namespaces/{namespace}/languagepipes"
COLLECTIONS = {
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "PersistentVolumeClaim": "/api/v1/namespaces/{namespace}/persistentvolumeclaims",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "ReplicaSet": "/apis/apps/v1/namespaces/{namespace}/replicasets",
}
CHILD_KINDS = tuple(kind for kind in COLLECTIONS if kind not in ("Pod", "ReplicaSet"))
_OURS = "app.kubernetes.io/managed-by=languagepipes"

# What is not there yet, or not as wished, is looked at again until the time is up.
eventually = functools.partial(
    waiting.eventually,
    every_seconds=0.1,
    not_yet=(AssertionError, httpx.HTTPError, KeyError, IndexError),
)


@contextmanager
def control_plane_with_crd(folder: Path | None = None) -> Iterator[ControlPlane]:
    """etcd, API server, scheduler and controller manager, with a node that runs nothing and says it does."""
    with ControlPlane(folder=folder) as control_plane:
        install_crd(control_plane)
        control_plane.add_node("node-1", runs_pods=True)
        yield control_plane


def install_crd(control_plane: ControlPlane, definition: Object | None = None) -> None:
    """Apply the CRD and wait until it is served."""
    body = definition or yaml.safe_load(CRD.read_text())
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
    control_plane.api.apply(path, body)

    def established() -> bool:
        conditions = control_plane.api.get(path).get("status", {}).get("conditions") or []
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)

    eventually(established, what="the CRD is established")


class OperatorProcess:
    """One `languagepipes-operator`. Its log is a file beside the control plane's."""

    def __init__(self, control_plane: ControlPlane, name: str, environment: Mapping[str, str]) -> None:
        self.log = control_plane.folder / f"{name}.log"
        self._file = self.log.open("ab")
        self._offset = self.log.stat().st_size
        settings = {f"LANGUAGEPIPES_OPERATOR_{key}": value for key, value in environment.items()}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("LANGUAGEPIPES_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "languagepipes_operator.main"],
            env={**inherited, "KUBECONFIG": str(control_plane.kubeconfig), **settings},
            stdout=self._file,
            stderr=self._file,
        )

    @property
    def said(self) -> str:
        """Its log since it was started."""
        return self.log.read_bytes()[self._offset :].decode()

    def address(self) -> str:
        """Of its telemetry."""
        found = eventually(
            lambda: self.process.poll() is not None or re.search(r"telemetry on (\S+)", self.said),
            what=lambda: f"telemetry; its log: {self.said[-2000:]}",
        )
        if found is True:
            raise RuntimeError(f"the operator ended with {self.process.returncode}: {self.said[-2000:]}")
        return str(found[1])

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.address()}{path}", trust_env=False, timeout=30)

    def ready(self) -> bool:
        return self.get("/readyz").status_code == 200

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with (at least) those labels; 0 where there is none (yet)."""
        return metric(self.get("/metrics").text, name, absent=0, **labels)

    def writes(self) -> int:
        """Requests that change something, the Lease's renewals apart."""
        calls = "languagepipes_operator_api_calls_total"
        return int(sum(self.metric(calls, verb=verb) for verb in ("create", "apply", "delete", "patch")))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """SIGTERM for a clean stop, SIGKILL for a crash."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self._file.close()
        return code


class ServedNamespace:
    """One namespace and the operator that serves it."""

    def __init__(self, control_plane: ControlPlane, *, others: tuple[str, ...] = ()) -> None:
        self.control_plane = control_plane
        self.api = control_plane.api
        self.namespace = f"test-{random.randrange(16**8):08x}"
        self.namespaces = (self.namespace, *others)
        self.api.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self.operators: list[OperatorProcess] = []
        self.stores: list[subprocess.Popen[bytes]] = []

    def start_operator(self, identity: str = "first", **environment: str) -> OperatorProcess:
        """Does not wait."""
        settings = {
            "NODE_IMAGE": "languagepipes-node:test",
            "NAMESPACES": ",".join(self.namespaces),
            "POD_NAMESPACE": self.namespace,
            "IDENTITY": identity,
            "LISTEN": "127.0.0.1:0",
            "LOG_LEVEL": "DEBUG" if os.environ.get("OPERATOR_DEBUG") else "INFO",
            **environment,
        }
        operator = OperatorProcess(self.control_plane, f"{self.namespace}-{identity}", settings)
        self.operators.append(operator)
        return operator

    def started(self, identity: str = "first", **environment: str) -> OperatorProcess:
        """An operator that is ready and leads."""
        operator = self.start_operator(identity, **environment)
        eventually(operator.ready, what="the operator is ready")
        eventually(lambda: operator.metric("languagepipes_operator_leader") == 1, what="the operator leads")
        return operator

    def close(self) -> None:
        for operator in self.operators:
            operator.stop()
        for store in self.stores:
            store.terminate()
            store.wait()
        for namespace in self.namespaces:
            self.api.delete(f"/api/v1/namespaces/{namespace}")

    # Objects

    def path(self, kind: str, name: str = "", *, namespace: str | None = None) -> str:
        collection = PIPES if kind == "LanguagePipe" else COLLECTIONS[kind]
        return collection.format(namespace=namespace or self.namespace) + (f"/{name}" if name else "")

    def apply_pipe(self, name: str = "pipe", *, namespace: str | None = None, **spec: Any) -> Object:
        return self.api.apply(self.path("LanguagePipe", name, namespace=namespace), pipe_of(name, **spec))

    def pipe(self, name: str = "pipe", *, namespace: str | None = None) -> Object:
        return self.api.get(self.path("LanguagePipe", name, namespace=namespace))

    def get(self, kind: str, name: str) -> Object:
        return self.api.get(self.path(kind, name))

    def list(self, kind: str, *, labels: str = _OURS, namespace: str | None = None) -> Objects:
        items = self.api.get(self.path(kind, namespace=namespace), labelSelector=labels)["items"]
        return [{"kind": kind, **item} for item in items]

    def children(self, *kinds: str, namespace: str | None = None) -> Objects:
        """Objects of ours, of those kinds or of all kinds that a pipe may have."""
        return [item for kind in kinds or CHILD_KINDS for item in self.list(kind, namespace=namespace)]

    def child(self, kind: str, role: str, pipe: str = "pipe") -> Object:
        found = self.list(kind, labels=f"languagepipes.io/pipe={pipe},{LABEL_ROLE}={role}")
        assert found, f"no {kind} of role {role}"
        return found[0]

    def versions(self) -> dict[str, str]:
        """ "Kind/name" of every child, with its UID and version."""
        return {
            f"{item['kind']}/{item['metadata']['name']}": "{uid} {resourceVersion}".format(**item["metadata"])
            for item in self.children()
        }

    def condition(self, kind: str, name: str = "pipe", *, namespace: str | None = None) -> Object:
        """The pipe's condition of that type; one of empty words where there is none yet."""
        conditions = self.pipe(name, namespace=namespace).get("status", {}).get("conditions") or []
        none_yet = {"type": kind, "status": "", "reason": "", "message": ""}
        return next((each for each in conditions if each["type"] == kind), none_yet)

    # What a node would do

    def play_store(self, model: Path, pipe: str = "pipe", *, namespace: str | None = None, role: str = "store") -> None:
        """A real store with the pipe's certificate, at an address that its pod then has. role: of the store's pod."""
        where = namespace or self.namespace
        labels = f"languagepipes.io/pipe={pipe},{LABEL_ROLE}"
        # The controller manager makes the pod. After an API server that was away it waits up to half a minute before it
        # watches again.
        pods = eventually(lambda: self.list("Pod", labels=f"{labels}={role}", namespace=where), what="the store's pod")
        pod = pods[0]
        secret = next(
            item
            for item in self.list("Secret", labels=f"{labels}=store", namespace=where)
            if {"ca.crt", "tls.crt", "tls.key"} <= item["data"].keys()
        )
        folder = self.control_plane.folder / f"{where}-{pipe}-{pod['metadata']['name']}"
        folder.mkdir(exist_ok=True)
        for name in ("ca.crt", "tls.crt", "tls.key"):
            (folder / name).write_bytes(base64.b64decode(secret["data"][name]))
        host = f"127.{random.randint(2, 15)}.{random.randint(0, 254)}.{random.randint(2, 254)}"
        self.stores.append(
            subprocess.Popen(
                [sys.executable, "-m", "languagepipes_node"],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "LANGUAGEPIPES_ROLE": "store",
                    "LANGUAGEPIPES_NAMESPACE": where,
                    "LANGUAGEPIPES_PIPE": pipe,
                    "LANGUAGEPIPES_TLS_DIR": str(folder),
                    "LANGUAGEPIPES_TELEMETRY_LISTEN": f"{host}:9090",
                    "LANGUAGEPIPES_STORE_LISTEN": f"{host}:7443",
                    "LANGUAGEPIPES_SOURCE": f"file://{model}",
                    "LANGUAGEPIPES_CACHE_DIR": str(folder / "cache"),
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        name = pod["metadata"]["name"]
        status = {"podIP": host, "podIPs": [{"ip": host}]}
        self.api.merge(f"{self.path('Pod', name, namespace=where)}/status", {"status": status})


def pipe_of(name: str, **spec: Any) -> Object:
    """A LanguagePipe of two stages over a tiny model. spec: fields that replace these."""
    return {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://tests/tiny", "dtype": "float32", "maxContextLength": 128},
            "stages": {"count": 2},
            **spec,
        },
    }


def replicas(served: ServedNamespace) -> dict[str, dict[str, str]]:
    """By number, the Deployments of each replica and their UIDs."""
    found: dict[str, dict[str, str]] = {}
    for each in served.list("Deployment"):
        metadata = each["metadata"]
        if LABEL_REPLICA in metadata["labels"]:
            found.setdefault(metadata["labels"][LABEL_REPLICA], {})[metadata["name"]] = metadata["uid"]
    return found


def completed(served: ServedNamespace) -> Object:
    """The status once the present generation is Ready and nothing is left to do."""

    def done() -> Object | None:
        pipe = served.pipe()
        status: Object = pipe["status"]
        turned = {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
        good = status["observedGeneration"] == pipe["metadata"]["generation"]
        return status if good and turned["Progressing"] == ("False", "Complete") else None

    found = eventually(done, what="a rollout that is complete")
    assert isinstance(found, dict)
    return found


def settled(operator: OperatorProcess, seconds: float = 3.0) -> None:
    """Wait until nothing was written for that long."""
    last, since = operator.writes(), time.monotonic()
    deadline = since + waiting.PATIENCE_SECONDS
    while time.monotonic() - since < seconds:
        time.sleep(0.5)
        now = operator.writes()
        if now != last:
            last, since = now, time.monotonic()
        assert time.monotonic() < deadline, "writes do not end"
