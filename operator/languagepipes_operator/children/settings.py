"""What the manifests must know of the operator's own settings."""

from __future__ import annotations

from typing import Protocol


class ManifestSettings(Protocol):
    """The part of the operator's settings that shapes children.

    node_image: what new plans run. every_address: where members listen: all of their pod's. hub_endpoint: the mirror
    that hf:// means; empty for the Hub. hub_ca_bundle: further authorities that it may be signed by, in PEM.
    pod_namespace: where the operator's own pods are; empty outside a cluster. fixed_ids: whether pods name their user
    and groups, or leave them to the cluster.
    """

    @property
    def node_image(self) -> str: ...

    @property
    def image_pull_policy(self) -> str: ...

    @property
    def hub_endpoint(self) -> str: ...

    @property
    def hub_ca_bundle(self) -> str: ...

    @property
    def every_address(self) -> str: ...

    @property
    def pod_namespace(self) -> str: ...

    @property
    def fixed_ids(self) -> bool: ...
