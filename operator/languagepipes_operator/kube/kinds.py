"""The kinds that the operator reads or writes, and where the API server has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from languagepipes_api.names import API_GROUP, API_VERSION
from languagepipes_api.names import KIND as LANGUAGE_PIPE

# An object as the API server reads and writes it in JSON.
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One kind at one version. api_version: "v1" or "group/version"."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The collection, of one namespace or all, or one object in it."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        middle = f"/namespaces/{namespace}" if self.namespaced and namespace is not None else ""
        end = f"/{name}" if name is not None else ""
        return f"{root}{middle}/{self.plural}{end}"

    def __str__(self) -> str:
        return self.name


PIPE = Kind(f"{API_GROUP}/{API_VERSION}", LANGUAGE_PIPE, "languagepipes")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD = Kind("v1", "Pod", "pods")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False)

# In the order in which they are written: what others mount or select comes first.
CHILDREN = (CONFIG_MAP, SECRET, SERVICE, CLAIM, POLICY, BUDGET, DEPLOYMENT)
BY_NAME = {kind.name: kind for kind in CHILDREN}
