"""Who talks to the store in its tests."""

from __future__ import annotations

from collections.abc import Callable

from languagepipes_api.names import Identity
from languagepipes_node.wire.tls import TlsFiles

STORE = Identity("default", "pipe", -1, "store")
STAGE = Identity("default", "pipe", 0, "stage", 1)
END_MODEL = Identity("default", "pipe", 0, "end-model")

TlsFor = Callable[..., TlsFiles]
