"""The console script `languagepipes-operator`: settings, logging, exit codes. kopf runs in the main thread.

Exit 0 after SIGTERM or SIGINT, 2 where the environment is wrong, 1 for what must not happen, and where everything must
be read anew since etcd was restored from a backup.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from languagepipes_operator import handlers
from languagepipes_operator.health import CannotListen
from languagepipes_operator.kube.errors import ConfigurationError, RevisionWentBack
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
    try:
        asyncio.run(handlers.serve(settings))
    except (ConfigurationError, CannotListen) as error:
        sys.exit(_refuse(str(error)))
    except RevisionWentBack as error:
        log.error("%s", error)
        sys.exit(1)
    log.info("stopped")


def _refuse(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
