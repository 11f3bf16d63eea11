"""The console script `languagepipes-operator`: settings, logging, signals, exit codes.

Exit 0 after SIGTERM or SIGINT, 2 where the environment is wrong, 1 for what must not happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys

from languagepipes_operator import handlers
from languagepipes_operator.controller import serve
from languagepipes_operator.kube.client import ConfigurationError, connect
from languagepipes_operator.metrics import Metrics
from languagepipes_operator.settings import OperatorSettings, SettingsError

log = logging.getLogger(__name__)


def main() -> None:
    """Run the operator."""
    try:
        settings = OperatorSettings.from_environment()
    except SettingsError as error:
        sys.exit(_refuse(f"the environment is wrong:\n{error}"))
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    handlers.quiet()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(settings))
    except ConfigurationError as error:
        sys.exit(_refuse(str(error)))
    except OSError as error:
        sys.exit(_refuse(f"cannot listen on {settings.listen}: {error}"))


async def _run(settings: OperatorSettings) -> None:
    metrics = Metrics()
    async with connect(metrics) as kube:
        where = ", ".join(settings.namespaces) or "all namespaces"
        log.info("serving %s of %s as %s", where, kube.host, settings.identity)
        serving = asyncio.ensure_future(serve(settings, kube, metrics, on_listen=_say_address))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        log.info("stopped")


def _say_address(address: str) -> None:
    log.info("telemetry on %s", address)


def _refuse(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
