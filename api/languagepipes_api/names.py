"""Names that more than one process must agree on: the API group, identities, ports and environment variables.

This module knows nothing of Kubernetes clients, torch or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

API_GROUP = "languagepipes.io"
API_VERSION = "v1alpha1"
KIND = "LanguagePipe"
WIRE_VERSION = 1

# Ports inside a pod. `languagepipes up` assigns free loopback ports instead.
RING_PORT = 7070
STORE_PORT = 7443
TELEMETRY_PORT = 9090
API_PORT = 8000

# Files in a TLS directory, named as in a kubernetes.io/tls Secret.
TLS_CA_FILE = "ca.crt"
TLS_CERTIFICATE_FILE = "tls.crt"
TLS_KEY_FILE = "tls.key"

Role = Literal["store", "stage", "end-model", "operator"]


@dataclass(frozen=True)
class Identity:
    """Who a certificate names: one member of one replica of one pipe, or the pipe's store or operator client.

    `index` is the stage's 1-based place in its replica and 0 for every other role. Stores and operator clients belong
    to the pipe and not to a replica, so theirs is -1.
    """

    namespace: str
    pipe: str
    replica: int
    role: Role
    index: int = 0

    @property
    def uri(self) -> str:
        """The URI SAN, in the form of a SPIFFE ID (https://spiffe.io/docs/latest/spiffe-about/spiffe-concepts/)."""
        base = f"spiffe://{API_GROUP}/ns/{self.namespace}/pipe/{self.pipe}"
        if self.role in ("store", "operator"):
            return f"{base}/{self.role}"
        member = f"stage/{self.index}" if self.role == "stage" else self.role
        return f"{base}/chain/{self.replica}/{member}"

    def __str__(self) -> str:
        return self.uri


# Labels of every child (https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/). Watches
# select by MANAGED_BY; owner references, and not labels, say whose a child is.
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "languagepipes"
LABEL_PIPE = f"{API_GROUP}/pipe"
LABEL_ROLE = f"{API_GROUP}/role"  # a Role, or FURTHER_STORE, "plan", "ca", "ring", "api"
# A weights store beside the pipe's first, whose Service selects by the role "store" alone; and which one it is.
FURTHER_STORE = "weights-store"
LABEL_STORE = f"{API_GROUP}/store"
LABEL_REPLICA = f"{API_GROUP}/chain"
LABEL_STAGE = f"{API_GROUP}/stage"  # the stage's 1-based place
LABEL_STAGE_NAME = f"{API_GROUP}/stage-name"
LABEL_PLAN = f"{API_GROUP}/plan"  # the plan hash
