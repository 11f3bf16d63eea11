"""Who talks to the store in its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from languagepipes_api.member_settings import MemberSettings
from languagepipes_api.names import Identity
from languagepipes_node.net.tls import TlsFiles

from support.ports import free_address

STORE = Identity("default", "pipe", -1, "store")
STAGE = Identity("default", "pipe", 0, "stage", 1)
END_MODEL = Identity("default", "pipe", 0, "end-model")

TlsFor = Callable[..., TlsFiles]


def store_settings(tls_for: TlsFor, source: str, *, cache_dir: Path, **more: Any) -> MemberSettings:
    """Of a store process on free ports of this machine."""
    return MemberSettings(
        role="store",
        pipe="pipe",
        tls_dir=tls_for(STORE).directory,
        telemetry_listen=free_address(),
        store_listen=free_address(),
        source=source,
        cache_dir=cache_dir,
        **more,
    )
