"""What the generators have in common: to write their files, or to check that they are up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path


def write_or_check(wanted: Mapping[Path, str], *, description: str, source: str) -> int:
    """Write the files, or with --check write nothing. source: "is not what SOURCE", of a file that is not up to date.

    Returns the exit status.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    checking = parser.parse_args().check
    status = 0
    for file, content in wanted.items():
        if not checking:
            file.parent.mkdir(exist_ok=True)
            file.write_text(content, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != content:
            print(f"{file} is not what {source}: run {sys.executable} {sys.argv[0]}", file=sys.stderr)
            status = 1
    return status
