"""`python -m languagepipes_operator.cli` is `languagepipes`."""

from __future__ import annotations

import sys

from languagepipes_operator.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
