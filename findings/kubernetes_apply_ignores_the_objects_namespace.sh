#!/usr/bin/env bash
# create_from_dict(..., apply=True) sends every object to the namespace "default", whatever namespace it names.
#
# Package    kubernetes 37.0.2, kubernetes.utils: create_from_dict, create_from_yaml, create_from_directory.
# Behaviour  The documentation of the argument namespace, whose default is "default": if the object already contains a
#            namespace, this parameter has no effect. So it is when objects are created. With apply=True (server-side
#            apply) the argument wins: the request for an object of the namespace "other" goes to that of "default".
# Seen       POST /api/v1/namespaces/other/configmaps, but PATCH /api/v1/namespaces/default/configmaps/a with a body
#            whose metadata.namespace is "other".
# Source     create_from_yaml_single_item hands namespace= to the dynamic client's server_side_apply unread; there an
#            argument goes before the body's own namespace. The way without apply looks into the body first.
# Effect     An API server refuses such a request (400: the namespace of the object does not match that of the request),
#            so apply=True works for manifests of the namespace "default" and of none, and for nothing else. A client
#            allowed to write in its own namespace alone is told that it may not patch in "default".
# Instead    Pass the namespace yourself, object by object: create_from_dict(client, each, apply=True,
#            namespace=each["metadata"].get("namespace", "default")); or call server_side_apply of the dynamic client's
#            resource without a namespace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kubernetes==37.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kubernetes import client, utils
from kubernetes.dynamic import DynamicClient

CONFIG_MAPS = {"name": "configmaps", "singularName": "", "namespaced": True, "kind": "ConfigMap", "verbs": ["create", "patch"]}
DISCOVERY = {
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [CONFIG_MAPS]},
}
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "other"}, "data": {"k": "v"}}
written: list[tuple[str, str, str]] = []  # of each write: the method, the path, the body's namespace


class APIServer(BaseHTTPRequestHandler):
    """Discovery, and writes that it notes and accepts."""

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(DISCOVERY[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        written.append((self.command, self.path.partition("?")[0], body["metadata"]["namespace"]))
        self.answer(body)

    do_PATCH = do_POST

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), APIServer)
threading.Thread(target=server.serve_forever, daemon=True).start()
configuration = client.Configuration()
configuration.host = f"http://127.0.0.1:{server.server_address[1]}"
api = client.ApiClient(configuration)


def request(write) -> tuple[str, str, str]:
    written.clear()
    write()
    print(*written[0])
    return written[0]


created = request(lambda: utils.create_from_dict(api, CONFIG_MAP))
assert created == ("POST", "/api/v1/namespaces/other/configmaps", "other"), "created elsewhere than the object says"
applied = request(lambda: utils.create_from_dict(api, CONFIG_MAP, apply=True))
assert applied == ("PATCH", "/api/v1/namespaces/default/configmaps/a", "other"), "changed: applied where the object says"
by_hand = request(lambda: utils.create_from_dict(api, CONFIG_MAP, apply=True, namespace="other"))
assert by_hand == ("PATCH", "/api/v1/namespaces/other/configmaps/a", "other"), "changed: namespace= is not what counts"
resource = DynamicClient(api).resources.get(api_version="v1", kind="ConfigMap")
by_resource = request(lambda: resource.server_side_apply(body=CONFIG_MAP, field_manager="me"))
assert by_resource == ("PATCH", "/api/v1/namespaces/other/configmaps/a", "other"), "changed: server_side_apply itself"
print("as found: with apply=True, the namespace that an object names is not the one that it is sent to")
PYTHON
