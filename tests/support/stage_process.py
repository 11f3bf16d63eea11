"""A stage without layers, as a process of its own: `python stage_process.py INDEX PORTS TLS_DIR PLAN_OPTIONS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.wire.stage_communicator import StageCommunicator
from languagepipes_node.wire.tls_transport import TlsTransport

from support.wire_ring import identity, make_plan


def main() -> None:
    index, addresses = int(sys.argv[1]), json.loads(sys.argv[2])
    files, options = TlsFiles(Path(sys.argv[3])), json.loads(sys.argv[4])
    buffers = options.pop("socket_buffer_bytes", None)
    communicator = StageCommunicator(
        identity(index), make_plan(**options), None, addresses[index], addresses[(index + 1) % len(addresses)],
        transport=TlsTransport(files, socket_buffer_bytes=buffers),
    )  # fmt: skip
    communicator.start()
    print("listening", flush=True)
    while True:
        inbound = communicator.receive(1.0)
        if inbound is None:
            continue
        rows = communicator.rows_forward(inbound)
        communicator.forward(inbound, inbound.hidden[: rows * communicator.limits.row_bytes], 1)


if __name__ == "__main__":
    main()
