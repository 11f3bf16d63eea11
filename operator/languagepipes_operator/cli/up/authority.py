"""The pipe's certificate authority while `up` runs: its key lives in this process alone.

The certificates are those of a cluster; members cannot tell the difference.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from languagepipes_api.names import Identity

from languagepipes_operator.certificates.authority import issue, new_ca, write_tls_dir


class Credentials:
    """Issues leaves into `directory` and renews them. Members read the files anew for each connection."""

    def __init__(self, directory: Path, *, namespace: str, pipe: str) -> None:
        self._directory = directory
        self._ca = new_ca(namespace, pipe)
        self._issued: dict[Identity, datetime] = {}

    def issue(self, identity: Identity) -> Path:
        """A TLS directory (ca.crt, tls.crt, tls.key) for `identity`."""
        leaf = issue(self._ca, identity)
        directory = self._directory / "-".join(
            str(part) for part in (identity.role, identity.index) if part not in (0,)
        )
        write_tls_dir(directory, self._ca, leaf)
        self._issued[identity] = leaf.renew_at()
        return directory

    def renew(self, now: datetime | None = None) -> list[Identity]:
        """Issue again what is past two thirds of its life; cheap when nothing is. Returns whose that was."""
        moment = now or datetime.now(UTC)
        due = [identity for identity, renew_at in self._issued.items() if moment >= renew_at]
        for identity in due:
            self.issue(identity)
        return due
