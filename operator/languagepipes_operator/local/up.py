"""`languagepipes up`: one pipe on this machine, by the same plan and the same node processes as in a cluster."""

from __future__ import annotations

from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.local.options import UpOptions


def run(pipe: LanguagePipe, options: UpOptions) -> int:
    """Serve `pipe` until Ctrl-C or SIGTERM (then 0), or until it cannot be served (then 1, and why on stderr)."""
    raise NotImplementedError
