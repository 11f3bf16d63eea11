"""`make chaos`: faults in any number, the shapes in turn. Exits with 1 if a request failed or something was left."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from support.chaos.lossy_network import enter_lossy_network, lost_packets
from support.chaos.members import SHAPES
from support.chaos.processes import Processes
from support.chaos.run import Options, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m support.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=1000, help="in all, shared by the shapes (default: 1000)")
    parser.add_argument("--seed", type=int, help="of requests and faults; one is drawn and printed if absent")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument(
        "--packet-loss", type=float, metavar="PERCENT", help="of all links, in a network namespace (needs root and nft)"
    )
    parser.add_argument("--quiet", action="store_true", help="no line for each fault")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed

    def say(line: str) -> None:
        if not options.quiet or line.startswith("PROBLEM"):
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    if options.packet_loss:
        enter_lossy_network(options.packet_loss)
    good = True
    share, rest = divmod(options.faults, len(SHAPES))
    with Processes() as processes:
        for number, (name, shape) in enumerate(SHAPES.items()):
            faults = share + (number < rest)
            if not faults:
                continue
            say(f"{name}: {faults} faults, seed {seed}")
            with tempfile.TemporaryDirectory(prefix="languagepipes-chaos-") as directory:
                report = run(Options(shape, faults, seed, options.streams), processes, Path(directory), say=say)
            print(f"\n## {name}\n\n{report}\n", flush=True)
            good = good and not report.problems
    if options.packet_loss:
        print(f"{lost_packets()} packets were lost")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
