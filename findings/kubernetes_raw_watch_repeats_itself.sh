#!/usr/bin/env bash
# Watch.stream(..., deserialize=False) repeats its events after each reconnection, and raises KeyError at a 410.
#
# Package    kubernetes 37.0.2, kubernetes.watch.
# Behaviour  deserialize=False leaves out the making of models: for large lists, and for objects that the models refuse.
#            Events are the same. But when the API server closes the connection, as it does with every watch after a
#            while, the next request starts at the first resourceVersion again, not at the last one seen, so that every
#            event since comes again; without a resource_version, the loop ends instead. When the server says that the
#            resourceVersion is too old (an event ERROR of code 410, which is usual), the loop raises KeyError.
# Seen       requests from 10, 10, 10 where the watch with models asks from 10, 12, 13; and KeyError('raw_object').
# Source     the method unmarshal_event of Watch notes the resource version and adds raw_object; with deserialize=False
#            Watch.stream calls json.loads in its place, then reads both.
# Effect     Handlers run again, once for each reconnection, for the same old changes, and an object that was deleted
#            in the meantime comes to life again. With `except ApiException` the process dies at the first 410.
# Instead    Give timeout_seconds, which makes one request of it, keep event["object"]["metadata"]["resourceVersion"]
#            yourself, pass it to the next, and look for events of type ERROR before anything else (they raise KeyError:
#            catch it). Or keep the models and read event["raw_object"].
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

TOO_OLD = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
connections: list[list[dict]] = []  # of each watch still to come: its events
asked: list[str | None] = []  # of each watch that came: the resource version it started from


def event(version: str) -> dict:
    metadata = {"name": "a", "namespace": "default", "resourceVersion": version}
    return {"type": "MODIFIED", "object": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}}


class APIServer(BaseHTTPRequestHandler):
    """Closes each watch after its events, and refuses one more than it has."""

    def do_GET(self) -> None:
        asked.append(parse_qs(urlparse(self.path).query).get("resourceVersion", [None])[0])
        body = "".join(json.dumps(each) + "\n" for each in connections.pop(0)) if connections else "{}"
        self.send_response(200 if body != "{}" else 403)
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
core = client.CoreV1Api(client.ApiClient(configuration))


def follow(*served: list[dict], **options: object) -> tuple[int, list[str | None], str]:
    """How many events came, where each request started, and how the loop ended (Forbidden: the server's third no)."""
    connections[:] = served
    asked.clear()
    count = 0
    try:
        for _ in watch.Watch().stream(core.list_namespaced_config_map, "default", **options):
            count += 1
    except Exception as error:
        ended = type(error).__name__
    else:
        ended = "at its end"
    print(options, count, "events, asked from", asked, "ended:", ended)
    return count, list(asked), ended


two = [[event("11"), event("12")], [event("13")]]
models = follow(*two, resource_version="10")
assert models == (3, ["10", "12", "13"], "ForbiddenException"), "with models, the watch does not resume"
raw = follow(*two, resource_version="10", deserialize=False)
assert raw == (3, ["10", "10", "10"], "ForbiddenException"), "changed: without models, the watch resumes otherwise"

models = follow(*two)
assert models == (3, [None, "12", "13"], "ForbiddenException"), "with models, the watch does not resume by itself"
raw = follow(*two, deserialize=False)
assert raw == (2, [None], "at its end"), "changed: without models and a resource version, the loop does not end"

expired = [[event("11"), TOO_OLD], [event("12")]]
models = follow(*expired, resource_version="10")
assert models == (2, ["10", "11", "12"], "ForbiddenException"), "with models, a first 410 is not tried again"
raw = follow(*expired, resource_version="10", deserialize=False)
assert raw == (1, ["10"], "KeyError"), "changed: without models, a 410 raises no KeyError"
print("as found: without models, a watch forgets where it was, and does not know a 410")
PYTHON
