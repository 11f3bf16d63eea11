"""What a user may say to `languagepipes up` besides the pipe. Light to import, for the CLI's parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class UpOptions:
    """port: where the OpenAI API listens on 127.0.0.1. cache_dir: the store's files, kept between runs.

    secrets_dir: stands in for Secrets, DIR/<secret>/<key>. ready_file: there, as JSON, while the pipe is Ready.
    log_dir: where members' output goes; None: into the private directory that vanishes.
    """

    port: int
    cache_dir: Path
    secrets_dir: Path | None = None
    ready_file: Path | None = None
    log_dir: Path | None = None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> UpOptions:
        """From what `add_arguments` parsed. Paths become absolute: members run in another directory."""

        def absolute(path: Path | None) -> Path | None:
            return None if path is None else Path(os.path.abspath(path.expanduser()))

        return cls(
            port=arguments.port,
            cache_dir=absolute(arguments.cache_dir) or default_cache_dir(),
            secrets_dir=absolute(arguments.secrets_dir),
            ready_file=absolute(arguments.ready_file),
            log_dir=absolute(arguments.log_dir),
        )


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """$XDG_CACHE_HOME/languagepipes, or ~/.cache/languagepipes (https://specifications.freedesktop.org/basedir/)."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path there is to be ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "languagepipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `FILE` and every option of `up` to `parser`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the LanguagePipe, as YAML")
    parser.add_argument(
        "--port", type=_port, default=8000, help="where the OpenAI API listens on 127.0.0.1 (default: 8000)"
    )
    parser.add_argument(
        "--cache-dir", metavar="DIR", type=Path, help=f"verified model files (default: {default_cache_dir()})"
    )
    parser.add_argument(
        "--secrets-dir", metavar="DIR", type=Path, help="stands in for Secrets: DIR/<secret name>/<key>"
    )
    parser.add_argument(
        "--ready-file",
        metavar="PATH",
        type=Path,
        help="JSON, there while the pipe is Ready",
    )
    parser.add_argument(
        "--log-dir",
        metavar="DIR",
        type=Path,
        help="keep members' output here (default: it vanishes)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use 1 to 65535")
    return int(text)
