#!/usr/bin/env bash
# SharedInformer, new in the client for Python, stays empty for custom resources, with either of the clients for them.
#
# Package    kubernetes 37.0.2, kubernetes.informer.
# Behaviour  SharedInformer(list_func) lists, watches, and keeps a cache; its cache documents that it holds generated
#            models and dicts. With CoreV1Api().list_namespaced_config_map it does. With CustomObjectsApi's
#            list_namespaced_custom_object, whose answer is a dict, each list fails, and it tries again every five
#            seconds, for ever. With the DynamicClient's resource.get, the list succeeds and each watch fails.
# Seen       a handler of ERROR gets TypeError("'builtin_function_or_method' object is not iterable"), or KeyError.
# Source     _initial_list of SharedInformer reads the list's items with getattr(answer, "items"): of a dict, that is
#            its method of this name. The dynamic client's events are dicts as well, while its get makes objects that
#            look for a "kind" in what a stream is.
# Effect     An operator's cache of its own resources is empty, and nothing raises: without a handler of ERROR, the only
#            sign is a line in the log of the module.
# Instead    Wrap the list function: give SharedInformer a function that calls CustomObjectsApi, and where `watch` is not
#            asked for, returns an object with the attributes items and metadata.resource_version.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kubernetes==37.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import functools
import json
import logging
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

from kubernetes import client
from kubernetes.dynamic import DynamicClient
from kubernetes.informer import SharedInformer

logging.disable(logging.CRITICAL)  # the module logs what its handlers of ERROR get
WIDGETS = {"name": "widgets", "singularName": "widget", "namespaced": True, "kind": "Widget", "verbs": ["list", "watch"]}
VERSION = {"groupVersion": "example.com/v1", "version": "v1"}
DISCOVERY = {
    "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "groups": [{"name": "example.com", "versions": [VERSION], "preferredVersion": VERSION}]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis/example.com/v1": {"kind": "APIResourceList", "groupVersion": "example.com/v1", "resources": [WIDGETS]},
}


class APIServer(BaseHTTPRequestHandler):
    """One object in each list, and one more in each first watch, which then stays open for a second."""

    def do_GET(self) -> None:
        url = urlparse(self.path)
        custom = url.path.startswith("/apis/example.com")
        of_kind = {"apiVersion": "example.com/v1", "kind": "Widget"} if custom else {"apiVersion": "v1", "kind": "ConfigMap"}
        one = lambda name, version: of_kind | {"metadata": {"name": name, "namespace": "default", "resourceVersion": version}}
        query = parse_qs(url.query)
        watched = "watch" in query
        if url.path in DISCOVERY:
            value = DISCOVERY[url.path]
        elif watched:
            value = {"type": "ADDED", "object": one("watched", "11")}
        else:
            value = of_kind | {"kind": of_kind["kind"] + "List", "metadata": {"resourceVersion": "10"}, "items": [one("listed", "5")]}
        body = json.dumps(value).encode() + b"\n"
        if watched and query["resourceVersion"] == ["11"]:
            threading.Event().wait(1)
            body = b""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), APIServer)
threading.Thread(target=server.serve_forever, daemon=True).start()
configuration = client.Configuration()
configuration.host = f"http://127.0.0.1:{server.server_address[1]}"
client.Configuration.set_default(configuration)
api = client.ApiClient(configuration)


def inform(list_function) -> tuple[list[str], list[str]]:
    """The cache's keys and the kinds of errors, once the watched object or an error has come."""
    errors: list[str] = []
    come: queue.Queue[None] = queue.Queue()
    informer = SharedInformer(list_function, namespace="default")

    def added(each: object) -> None:
        name = each["metadata"]["name"] if isinstance(each, dict) else each.metadata.name
        if name == "watched":
            come.put(None)

    def failed(error: Exception) -> None:
        errors.append(type(error).__name__)
        come.put(None)

    informer.add_event_handler("ADDED", added)
    informer.add_event_handler("ERROR", failed)
    informer.start()
    come.get(timeout=30)
    informer.stop()
    return sorted(informer.cache.list_keys()), errors[:1]


typed = inform(client.CoreV1Api(api).list_namespaced_config_map)
print("CoreV1Api          ", *typed)
assert typed == (["default/listed", "default/watched"], []), "not even ConfigMaps are kept"

custom = functools.partial(client.CustomObjectsApi(api).list_namespaced_custom_object, "example.com", "v1", plural="widgets")
of_custom = inform(custom)
print("CustomObjectsApi   ", *of_custom)
assert of_custom == ([], ["TypeError"]), "changed: custom objects are kept"

of_dynamic = inform(DynamicClient(api).resources.get(api_version="example.com/v1", kind="Widget").get)
print("DynamicClient      ", *of_dynamic)
assert of_dynamic == (["default/listed"], ["KeyError"]), "changed: objects of the dynamic client are followed"


def wrapped(**options):
    answer = custom(**options)
    if options.get("watch"):
        return answer
    return SimpleNamespace(items=answer["items"], metadata=SimpleNamespace(resource_version=answer["metadata"]["resourceVersion"]))


by_wrapper = inform(wrapped)
print("wrapped            ", *by_wrapper)
assert by_wrapper == (["default/listed", "default/watched"], []), "the wrapper does not help"
print("as found: an informer of custom resources has an empty cache, or one that is not kept up")
PYTHON
