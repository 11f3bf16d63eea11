#!/usr/bin/env bash
# The first candidate of kubernetes.aio's leader election fails with a ValidationError instead of creating the lock.
#
# Package    kubernetes 37.0.2, with pydantic 2.14.4: kubernetes.aio.leaderelection; kubernetes.leaderelection of the
#            same package beside it.
# Behaviour  If the Lease (or the ConfigMap) of the lock does not exist yet, acquiring raises pydantic's ValidationError
#            before anything is sent. With an existing one, and in the synchronous leader election, it works.
# Seen       "1 validation error for CoordinationV1Api.create_namespaced_lease: pretty, Input should be a valid string
#            [type=string_type, input_value=True, input_type=bool]"
# Source     create of LeaseLock and of ConfigMapLock in kubernetes.aio passes pretty=True, where the generated methods
#            of this version take a strict string ('true') and check it. create expects ApiException only, so the
#            other error ends LeaderElection.run().
# Effect     A program whose Lease is there already runs, and the same program ends at its start in a new cluster or
#            namespace.
# Instead    Create the Lease beforehand, with an empty spec (by the chart or the program itself).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kubernetes==37.0.2 pydantic==2.14.4 aiohttp
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kubernetes import client
from kubernetes.aio import client as aio_client
from kubernetes.aio.leaderelection import electionconfig as aio_config
from kubernetes.aio.leaderelection import leaderelection as aio_election
from kubernetes.aio.leaderelection.resourcelock.configmaplock import ConfigMapLock as AioConfigMapLock
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock as AioLeaseLock
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from pydantic import ValidationError

METADATA = {"name": "there", "namespace": "default", "resourceVersion": "1"}
written = []


class ApiServer(BaseHTTPRequestHandler):
    """Has an object named "there" that nobody holds, and no other; accepts what is written."""

    def do_GET(self) -> None:
        if self.path.endswith("/there"):
            self.answer(200, {"metadata": METADATA, "spec": {}})
        else:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound"})

    def do_POST(self) -> None:
        written.append(self.command)
        self.answer(200, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    do_PUT = do_POST

    def answer(self, code: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
threading.Thread(target=server.serve_forever, daemon=True).start()
host = f"http://127.0.0.1:{server.server_port}"
times = {"lease_duration": 17, "renew_deadline": 15, "retry_period": 5}


async def acquire_with_aio(lock_class: type, name: str) -> bool:
    async with aio_client.ApiClient(aio_client.Configuration(host=host)) as api:
        lock = lock_class(name, "default", "me", api)
        config = aio_config.Config(lock, onstarted_leading=lambda: None, onstopped_leading=None, **times)
        return await aio_election.LeaderElection(config).acquire()


client.Configuration.set_default(client.Configuration(host=host))
config = electionconfig.Config(
    LeaseLock("new", "default", "me"), onstarted_leading=lambda: None, onstopped_leading=lambda: None, **times
)
assert leaderelection.LeaderElection(config).acquire() and written == ["POST"], "kubernetes does not create its Lease"
print("kubernetes, no Lease yet:          created")

written.clear()
assert asyncio.run(acquire_with_aio(AioLeaseLock, "there")) and written == ["PUT"], "kubernetes.aio takes no free Lease"
print("kubernetes.aio, Lease there:       taken")

for lock_class in (AioLeaseLock, AioConfigMapLock):
    written.clear()
    try:
        asyncio.run(acquire_with_aio(lock_class, "new"))
    except ValidationError as error:
        (detail,) = error.errors()
        print(f"kubernetes.aio, no {lock_class.__name__} yet: {detail['loc']} {detail['msg']}, not {detail['input']}")
        assert detail["loc"] == ("pretty",), "changed: another argument is refused"
        assert not written
    else:
        raise SystemExit(f"changed: {lock_class.__name__} creates what it locks")
print("as found: leader election of kubernetes.aio takes an existing lock, and cannot create one")
PYTHON
