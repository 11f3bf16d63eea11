"""`python tests/cluster up`: keep a real cluster running until Ctrl-C, to develop against.

python tests/cluster up [--image ARCHIVE ...] [--kubeconfig LINK]
python tests/cluster control-plane
python tests/cluster hold [--image ARCHIVE ...]   # only unpacks the images, for the next cluster
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):  # run by its folder's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster import Cluster, ControlPlane
from cluster.build import build
from cluster.images import ImageStore


def main() -> int:
    parser = argparse.ArgumentParser(description="A real Kubernetes for tests, until Ctrl-C")
    parser.add_argument("what", choices=("up", "control-plane", "hold"))
    parser.add_argument("--image", type=Path, action="append", default=[], help="archive that both nodes get")
    parser.add_argument("--kubeconfig", type=Path, help="link to the kubeconfig, as long as the cluster lives")
    options = parser.parse_args()
    build()
    if options.what == "hold":
        ImageStore().hold(options.image)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end it in order
    running = Cluster(images=options.image) if options.what == "up" else ControlPlane()
    with running, contextlib.suppress(KeyboardInterrupt):
        print(f"export KUBECONFIG={running.kubeconfig}  # logs in {running.logs}; Ctrl-C ends it", flush=True)
        if options.kubeconfig:
            options.kubeconfig.unlink(missing_ok=True)
            options.kubeconfig.symlink_to(running.kubeconfig)
        signal.pause()
    if options.kubeconfig:
        options.kubeconfig.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
