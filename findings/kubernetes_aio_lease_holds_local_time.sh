#!/usr/bin/env bash
# Leader election of kubernetes.aio writes the local time into a Lease and marks it as UTC.
#
# Package    kubernetes 37.0.2: kubernetes.aio.leaderelection; kubernetes.leaderelection of the same package beside it.
# Behaviour  Where the process's time zone is not UTC, acquireTime and renewTime of the Lease are off by the zone's
#            offset. The synchronous leader election of the same package writes the right instant.
# Seen       with nine hours east of UTC: a Lease renewed "in nine hours" by kubernetes.aio, "now" by kubernetes.
# Source     LeaderElection takes a naive datetime in local time; the method time_str_to_iso of LeaseLock in
#            kubernetes.aio appends a Z to it. The method of that name in kubernetes converts it to UTC, and says that
#            other clients read the Lease, too.
# Effect     Candidates measure how long a Lease stands still, so the election itself works. Whatever compares renewTime
#            with a clock (an alert on a Lease that is no longer renewed, a person at `kubectl get lease`) takes a dead
#            leader for a live one for hours east of UTC, and a live one for dead west of it.
# Instead    Run the process with TZ=UTC, or write the Lease without this class.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kubernetes==37.0.2 aiohttp
# A zone in POSIX notation: nine hours east of UTC, without a time zone database.
TZ=EAST-9 "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kubernetes import client
from kubernetes.aio import client as aio_client
from kubernetes.aio.leaderelection import electionconfig as aio_config
from kubernetes.aio.leaderelection import leaderelection as aio_election
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock as AioLeaseLock
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

written = []
METADATA = {"name": "lock", "namespace": "default", "resourceVersion": "1"}
FREE = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": METADATA, "spec": {}}


class OneFreeLease(BaseHTTPRequestHandler):
    """An API server with a Lease that nobody holds, which keeps what is written."""

    def do_GET(self) -> None:
        self.answer(FREE)

    def do_PUT(self) -> None:
        written.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(written[-1])

    def answer(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), OneFreeLease)
threading.Thread(target=server.serve_forever, daemon=True).start()
host = f"http://127.0.0.1:{server.server_port}"
times = {"lease_duration": 17, "renew_deadline": 15, "retry_period": 5}


async def acquire_with_aio() -> bool:
    async with aio_client.ApiClient(aio_client.Configuration(host=host)) as api:
        lock = AioLeaseLock("lock", "default", "me", api)
        config = aio_config.Config(lock, onstarted_leading=lambda: None, onstopped_leading=None, **times)
        return await aio_election.LeaderElection(config).try_acquire_or_renew()


def acquire() -> bool:
    client.Configuration.set_default(client.Configuration(host=host))
    config = electionconfig.Config(
        LeaseLock("lock", "default", "me"), onstarted_leading=lambda: None, onstopped_leading=lambda: None, **times
    )
    return leaderelection.LeaderElection(config).try_acquire_or_renew()


def hours_ahead() -> float:
    renewed = datetime.fromisoformat(written[-1]["spec"]["renewTime"])
    ahead = (renewed - datetime.now(UTC)).total_seconds() / 3600
    print(f"  renewTime {written[-1]['spec']['renewTime']}, {ahead:+.2f} h from now")
    return ahead


print("kubernetes:")
assert acquire(), "kubernetes did not acquire the Lease"
assert abs(hours_ahead()) < 0.5, "changed: the synchronous election is off, too"
print("kubernetes.aio:")
assert asyncio.run(acquire_with_aio()), "kubernetes.aio did not acquire the Lease"
assert abs(hours_ahead() - 9) < 0.5, "changed: kubernetes.aio no longer writes the local time as if it were UTC"
print("as found: the Lease is ahead by the offset of the time zone with kubernetes.aio, and right with kubernetes")
PYTHON
