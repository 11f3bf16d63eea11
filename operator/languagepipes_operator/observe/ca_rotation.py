"""Whether a pipe's certificate authority is being rotated, as its Secret shows it. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from languagepipes_api.names import LABEL_ROLE, TLS_CA_FILE

from languagepipes_operator.certificates.pem import read_certificates
from languagepipes_operator.kube.kinds import Manifest
from languagepipes_operator.observe.ownership import label


def ca_is_rotated(secrets: Mapping[str, Manifest]) -> bool:
    """Then the bundle does not hold exactly one certificate, and every member must report which bundle it uses."""
    return any(_bundle_size(secret) != 1 for secret in secrets.values() if label(secret, LABEL_ROLE) == "ca")


def _bundle_size(secret: Manifest) -> int:
    """0 if it cannot be read."""
    try:
        pem = base64.b64decode((secret.get("data") or {}).get(TLS_CA_FILE, ""), validate=True)
    except (binascii.Error, ValueError, TypeError):
        return 0
    return len(read_certificates(pem))
