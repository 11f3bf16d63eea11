"""The operator process's own settings, from `LANGUAGEPIPES_OPERATOR_…` variables. What a pipe wants is in the pipe.

SettingsError       a variable is wrong or missing; names each of them
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

PREFIX = "LANGUAGEPIPES_OPERATOR_"
_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


class SettingsError(ValueError):
    """One line for each wrong variable, with its name and the reason."""


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(sorted({name.strip() for name in value.split(",") if name.strip()}))
    return value


def _certificates(text: str) -> str:
    """The certificates alone, as PEM: what stands around them is left out, and their dates are not judged."""
    if not text.strip():
        return ""
    if "PRIVATE KEY-----" in text:  # of which nothing is quoted
        raise PydanticCustomError(
            "private_key", "it holds a private key, and pods would read it: leave it out, take the certificates alone"
        )
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        raise PydanticCustomError(
            "no_certificates",
            "{begins} is not the PEM text of certificates: take those of the mirror's authorities, each with its lines "
            "-----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----",
            {"begins": repr(f"{text.strip()[:40]}…")},
        ) from error
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in found)


def _wrong_address(text: str) -> str:
    """Why it is no http:// or https:// address of a host; "" where it is one."""
    try:
        parts = urlsplit(text)
        if parts.port == 0:
            return "Port out of range 1-65535"
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", text):
        return "not http:// or https:// and a host"
    return ""


def _endpoint(text: str) -> str:
    """As the weights stores and their policies will read it."""
    if not text:
        return ""
    if problem := _wrong_address(text):
        raise PydanticCustomError(
            "endpoint",
            "{value} is no address of a mirror ({problem}): write it as https://hub.example or "
            "https://hub.example:8443/path, or leave it empty for the Hub",
            {"value": repr(text), "problem": problem},
        )
    return text


def _proxy(text: str) -> str:
    """As the weights stores and their policies will read it."""
    if not text:
        return ""
    if "@" in text:  # of which nothing is quoted
        raise PydanticCustomError(
            "proxy_credentials",
            "it holds a user or a password, and whoever reads a pod would read it: leave them out, and give them to "
            "each store as HTTPS_PROXY from a Secret, by spec.store.template.env",
        )
    if problem := _wrong_address(text):
        raise PydanticCustomError(
            "proxy",
            "{value} is no address of a proxy ({problem}): write it as http://proxy.example:3128, or leave it empty",
            {"value": repr(text), "problem": problem},
        )
    return text


class OperatorSettings(BaseModel):
    """node_image: what members of new plans run; a plan that exists keeps its image while that can be pulled.

    hub_endpoint: the mirror that hf:// means; empty for the Hub. hub_ca_bundle: the authorities, in PEM, that it may be
    signed by beside those of the node image's system. hub_proxy: the HTTP proxy by which stores reach the Hub, its
    mirror and https:// sources; hub_no_proxy: hosts that they reach without it. image_pull_secrets: names of Secrets in
    the pipes' namespaces. namespaces: those that are served; none means all, and then Nodes are read too. fixed_ids:
    whether pods of pipes run as user and group 65532, or as the cluster assigns. identity: distinguishes replicas of
    the operator in the Lease. every_address: where members listen: on all IPv4 addresses, or on all of both kinds where
    the API server is reached by IPv6.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    node_image: Annotated[str, Field(min_length=1)]
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    hub_endpoint: Annotated[str, AfterValidator(_endpoint)] = ""
    hub_ca_bundle: Annotated[str, AfterValidator(_certificates)] = ""
    hub_proxy: Annotated[str, AfterValidator(_proxy)] = ""
    hub_no_proxy: str = ""
    fixed_ids: bool = True
    namespaces: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    pod_namespace: Annotated[str, Field(min_length=1)] = "default"
    lease_name: Annotated[str, Field(min_length=1)] = "languagepipes-operator"
    identity: Annotated[str, Field(min_length=1)]
    every_address: Literal["0.0.0.0", "[::]"] = "0.0.0.0"  # noqa: S104 (a pod serves its network)
    listen: Annotated[str, Field(pattern=r"^\S+:\d+$")] = "0.0.0.0:9090"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def cluster_wide(self) -> bool:
        return not self.namespaces

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> OperatorSettings:
        """Empty variables count as absent, unknown ones as wrong. Raises SettingsError."""
        values = {
            name.removeprefix(PREFIX).lower(): value
            for name, value in environment.items()
            if name.startswith(PREFIX) and value
        }
        values.setdefault("identity", socket.gethostname())
        if ":" in environment.get("KUBERNETES_SERVICE_HOST", ""):
            # Pods of such a cluster have IPv6 addresses, and maybe no other.
            values.setdefault("every_address", "[::]")
            values.setdefault("listen", "[::]:9090")
        values.setdefault("pod_namespace", _own_namespace())
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [
                f"{PREFIX}{'.'.join(map(str, problem['loc'])).upper()}: {problem['msg']}" for problem in error.errors()
            ]
            raise SettingsError("\n".join(lines)) from error


def _own_namespace() -> str:
    try:
        with open(_NAMESPACE_FILE, encoding="utf-8") as file:
            return file.read().strip() or "default"
    except OSError:
        return "default"
