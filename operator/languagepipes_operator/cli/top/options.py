"""What a user may say to `languagepipes top`. Light to import, for the CLI's parser."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

INTERVAL_SECONDS = 2.0


@dataclass(frozen=True)
class TopOptions:
    """pipe: None shows the only one, or a line for each. namespace: None is the kubeconfig's. once: two readings, one
    picture, and the end; so it is as well where stdout is no terminal.
    """

    pipe: str | None = None
    namespace: str | None = None
    all_namespaces: bool = False
    context: str | None = None
    interval_seconds: float = INTERVAL_SECONDS
    once: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> TopOptions:
        return cls(
            pipe=arguments.pipe,
            namespace=arguments.namespace,
            all_namespaces=arguments.all_namespaces,
            context=arguments.context,
            interval_seconds=arguments.interval,
            once=arguments.once,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipe", metavar="PIPE", nargs="?", help="default: the only one there, or a line for each")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", metavar="NS", help="default: that of the kubeconfig's context")
    where.add_argument("-A", "--all-namespaces", action="store_true", help="a line for each pipe of the cluster")
    parser.add_argument("--context", metavar="NAME", help="of the kubeconfig; default: its current one")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        default=INTERVAL_SECONDS,
        help=f"between two readings (default: {INTERVAL_SECONDS:g}); rates are over this time",
    )
    parser.add_argument("--once", action="store_true", help="show one picture and end, as where stdout is no terminal")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.5 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0.5 to 3600 seconds")
    return seconds
