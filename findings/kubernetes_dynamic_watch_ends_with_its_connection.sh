#!/usr/bin/env bash
# The dynamic client's watch ends when the API server closes the connection; Watch.stream goes on where it was.
#
# Package    kubernetes 37.0.2, kubernetes.dynamic and kubernetes.watch.
# Behaviour  An API server closes every watch after a while (30 to 60 minutes by default, and whenever it restarts).
#            Watch().stream(list_function) then asks again from the last resourceVersion that it saw, and its loop goes
#            on, as its documentation says. resource.watch() of the DynamicClient, called without a timeout, uses the
#            same class, and its loop simply ends: no second request, no exception.
# Seen       three events over two connections with Watch.stream, two events over one with the DynamicClient.
# Source     DynamicClient.watch passes timeout_seconds=timeout to Watch.stream always, None when none was given;
#            Watch.stream takes the mere presence of this argument as a limit set by the caller, and does not resume.
#            The client for asyncio (kubernetes.aio.dynamic) passes it only when there is one.
# Effect     A controller, or a thread, whose body is `for event in resource.watch(): ...` stops watching within the
#            hour, silently, and its process lives on.
# Instead    Put `while True:` around resource.watch(), with resource_version= from the last event's object, and list anew
#            at status 410. Watch().stream(resource.get, ...) is no way out: it asks again, but from where it began. Or
#            use the client for asyncio.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kubernetes==37.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

from kubernetes import client, watch
from kubernetes.dynamic import DynamicClient

CONFIG_MAPS = {"name": "configmaps", "singularName": "", "namespaced": True, "kind": "ConfigMap", "verbs": ["list", "watch"]}
DISCOVERY = {
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [CONFIG_MAPS]},
}
connections: list[list[str]] = []  # of each watch still to come: the resource versions of its events
asked: list[str | None] = []  # of each watch that came: the resource version it started from


def event(version: str) -> dict:
    metadata = {"name": "a", "namespace": "default", "resourceVersion": version}
    return {"type": "MODIFIED", "object": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}}


class APIServer(BaseHTTPRequestHandler):
    """Discovery, and watches that it closes after a few events, as an API server closes them after a few minutes."""

    def do_GET(self) -> None:
        url = urlparse(self.path)
        if url.path in DISCOVERY:
            body = json.dumps(DISCOVERY[url.path])
        else:
            asked.append(parse_qs(url.query).get("resourceVersion", [None])[0])
            body = "".join(json.dumps(event(version)) + "\n" for version in connections.pop(0))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), APIServer)
threading.Thread(target=server.serve_forever, daemon=True).start()
configuration = client.Configuration()
configuration.host = f"http://127.0.0.1:{server.server_address[1]}"
client.Configuration.set_default(configuration)
api = client.ApiClient(configuration)


def follow(events) -> list[str]:
    """The resource versions of the events until the third, or until there are no more."""
    seen = []
    for each in events:
        seen.append(each["raw_object"]["metadata"]["resourceVersion"])
        if len(seen) == 3:
            break
    return seen


connections[:] = [["11", "12"], ["13"]]
typed = follow(watch.Watch().stream(client.CoreV1Api(api).list_namespaced_config_map, "default", resource_version="10"))
print("Watch.stream           ", typed, "asked from", asked)
assert typed == ["11", "12", "13"] and asked == ["10", "12"], "Watch.stream does not resume where it was"

connections[:] = [["11", "12"], ["13"]]
asked.clear()
config_maps = DynamicClient(api).resources.get(api_version="v1", kind="ConfigMap")
dynamic = follow(config_maps.watch(namespace="default", resource_version="10"))
print("DynamicClient's watch  ", dynamic, "asked from", asked)
assert dynamic == ["11", "12"], "changed: the dynamic client's watch goes on"
assert asked == ["10"], "changed: the dynamic client's watch asks again"
print("as found: the loop over the dynamic client's watch ends when the server closes the connection")
PYTHON
