"""A real Prometheus beside the test cluster, as the real Prometheus operator configures it for the chart's monitors and
rules.

Both run outside of the nodes, as DNS does; pods are reached at their own addresses. The operator's StatefulSet of
Prometheus has no pods, since no image of Prometheus is there: its configuration is read from where its pods would.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from cluster import Cluster, programs
from cluster.processes import ProcessGroup

from support.kubectl import Kubectl, wait_for
from support.ports import free_port

NAMESPACE = "monitoring"
NAME = "k8s"
# As kube-prometheus-stack selects monitors and rules, whose release is called so.
LABELS = {"release": "prometheus"}
SCRAPE_SECONDS = 2
_RULES_FOLDER = f"/etc/prometheus/rules/prometheus-{NAME}-rulefiles-0"

Sample = dict[str, Any]


class Monitoring:
    """A context manager; inside it the Prometheus scrapes. values: of the chart, for what it finds."""

    values = tuple(
        argument
        for part in ("serviceMonitor", "podMonitor", "prometheusRule")
        for argument in ("--set", f"{part}.enabled=true", "--set", f"{part}.labels.release={LABELS['release']}")
    ) + tuple(
        argument
        for part in ("serviceMonitor", "podMonitor")
        for argument in ("--set", f"{part}.interval={SCRAPE_SECONDS}s")
    )

    def __init__(self, admin: Kubectl, cluster: Cluster, folder: Path) -> None:
        self._kubectl = admin.within(NAMESPACE)
        self._control_plane = cluster.control_plane
        self._folder = folder
        self._processes = ProcessGroup(cluster.logs)
        self._address = f"127.0.0.1:{free_port()}"

    def install_crds(self) -> None:
        """Before the chart brings objects of these kinds."""
        kinds = ("podmonitors", "probes", "prometheuses", "prometheusrules", "scrapeconfigs", "servicemonitors")
        files = [programs.prometheus_operator_crds() / f"monitoring.coreos.com_{kind}.yaml" for kind in kinds]
        self._kubectl("apply", "--server-side", *(f"--filename={file}" for file in files))
        names = [f"crd/{kind}.monitoring.coreos.com" for kind in kinds]
        self._kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)

    def __enter__(self) -> Monitoring:
        try:
            self._start()
        except BaseException:
            self._processes.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.stop()
        self._kubectl("delete", "namespace", NAMESPACE, "--wait=false")

    def _start(self) -> None:
        leaf = self._control_plane.client("prometheus", common_name="prometheus", organization="system:masters")
        kubeconfig = self._control_plane.write_kubeconfig(self._folder / "kubeconfig", leaf)
        self._kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self._kubectl.apply(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "Prometheus",
                "metadata": {"name": NAME},
                "spec": {
                    "replicas": 0,
                    "version": programs.PROMETHEUS_PROGRAM,
                    "evaluationInterval": f"{SCRAPE_SECONDS}s",
                    "serviceDiscoveryRole": "EndpointSlice",
                    "apiserverConfig": {
                        "host": self._control_plane.url,
                        "tlsConfig": {
                            "caFile": str(self._control_plane.authority.certificate),
                            "certFile": str(leaf.certificate),
                            "keyFile": str(leaf.key),
                        },
                    },
                    **{
                        f"{kind}{suffix}": selector
                        for kind in ("podMonitor", "serviceMonitor", "rule")
                        for suffix, selector in (("Selector", {"matchLabels": LABELS}), ("NamespaceSelector", {}))
                    },
                },
            }
        )
        # Without KUBECONFIG it would look for its pod's service account.
        self._processes.start(
            "prometheus-operator",
            [programs.prometheus_operator(), f"--web.listen-address=127.0.0.1:{free_port()}"],
            environment={**os.environ, "KUBECONFIG": str(kubeconfig)},
        )
        configuration = wait_for("a configuration with both monitors", self._configuration)
        rules = wait_for("the rules", self._rules)
        rules_folder = self._folder / "rules"
        rules_folder.mkdir()
        for name, text in rules.items():
            (rules_folder / name).write_text(text)
        file = self._folder / "prometheus.yaml"
        of_pod = {_RULES_FOLDER: str(rules_folder), "$(POD_NAME)": "prometheus-0", "$(SHARD)": "0"}
        for known, value in of_pod.items():  # as its pod's reloader fills them in
            configuration = configuration.replace(known, value)
        assert "$(" not in configuration, configuration
        file.write_text(configuration)
        self._processes.start(
            "prometheus",
            [
                programs.prometheus(),
                f"--config.file={file}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self._address}",
            ],
        )
        self._processes.wait_until(self._ready, what="Prometheus", timeout_seconds=60)

    def _configuration(self) -> str | None:
        secret = self._kubectl.run(
            "get", "secret", f"prometheus-{NAME}", "-o", r"jsonpath={.data.prometheus\.yaml\.gz}"
        )
        if secret.returncode != 0:
            return None
        text = gzip.decompress(base64.b64decode(secret.stdout)).decode()
        jobs = {match[1] for match in re.finditer(r"job_name: (podMonitor|serviceMonitor)/", text)}
        return text if jobs == {"podMonitor", "serviceMonitor"} else None

    def _rules(self) -> dict[str, str] | None:
        found = [each for each in self._kubectl.list("configmaps") if "rulefiles-0" in each["metadata"]["name"]]
        return found[0].get("data") if found else None

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://{self._address}/-/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of Prometheus' HTTP API. Raises AssertionError with its words for what it refuses."""
        answer = httpx.get(f"http://{self._address}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[Sample]:
        """The samples of an instant query."""
        found: list[Sample] = self.get("query", query=expression)["result"]
        return found

    def firing(self, namespace: str) -> set[str]:
        """Names of the alerts that fire about this namespace."""
        found = [each["labels"] for each in self.get("alerts")["alerts"] if each["state"] == "firing"]
        return {each["alertname"] for each in found if each.get("namespace") == namespace}
