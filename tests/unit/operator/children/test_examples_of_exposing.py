"""The examples of ways in from outside fit the pipe that they name: its Service, its limits, its policies, its keys.

No ingress controller and no gateway runs here: what they make of these objects is not tested.
"""

from __future__ import annotations

from typing import Any

import pytest
from languagepipes_api.names import API_PORT, RING_PORT, STORE_PORT, TELEMETRY_PORT
from languagepipes_node.end_model.openai import app, generation, server
from languagepipes_operator.children.services import api_service
from support.example_files import example_objects, object_of_kind, snapshot_of
from support.example_pipes import of_kind, rendered
from support.policy_evaluator import Pod, allowed

(PIPE,) = example_objects("mixed-gpu-cpu.yaml")
SNAPSHOT = snapshot_of(PIPE)
SERVICE = api_service(SNAPSHOT, publish_unready=False)

INGRESS = object_of_kind(example_objects("exposing/ingress-nginx.yaml"), "Ingress")
GATEWAY = object_of_kind(example_objects("exposing/gateway-api.yaml"), "Gateway")
ROUTE = object_of_kind(example_objects("exposing/gateway-api.yaml"), "HTTPRoute")
TIMEOUTS = object_of_kind(example_objects("exposing/envoy-gateway.yaml"), "BackendTrafficPolicy")
EGRESS = object_of_kind(example_objects("exposing/network-policy.yaml"), "NetworkPolicy")

NGINX = {key.partition("/")[2]: value for key, value in INGRESS["metadata"]["annotations"].items()}


def only(items: list[Any]) -> Any:
    (item,) = items
    return item


def seconds(duration: str) -> int:
    """Of the durations of the Gateway API (GEP-2257), those of one unit."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def test_the_pipe_that_is_exposed_asks_for_keys() -> None:
    assert SNAPSHOT.pipe.spec.server.api_keys_secret_ref is not None


def test_the_ingress_leads_to_the_pipes_service() -> None:
    rule = only(INGRESS["spec"]["rules"])
    path = only(rule["http"]["paths"])
    backend = path["backend"]["service"]

    assert backend["name"] == SERVICE["metadata"]["name"]
    assert backend["port"]["name"] in {port["name"] for port in SERVICE["spec"]["ports"]}
    assert (path["path"], path["pathType"]) == ("/v1", "Prefix")
    assert only(INGRESS["spec"]["tls"])["hosts"] == [rule["host"]]


def test_nginx_waits_longer_than_the_pipe_is_silent() -> None:
    silence_seconds = max(generation._SILENCE_SECONDS, SNAPSHOT.pipe.spec.recovery.max_wait_seconds)

    assert NGINX["proxy-buffering"] == "off"
    assert int(NGINX["proxy-read-timeout"]) > silence_seconds


def test_nginx_takes_what_the_pipe_takes() -> None:
    context = SNAPSHOT.pipe.spec.model.max_context_length
    most = max(app._LEAST_MAX_REQUEST_BYTES, context * app._REQUEST_BYTES_PER_TOKEN)

    assert int(NGINX["proxy-body-size"].removesuffix("m")) << 20 > most


def test_the_route_leads_to_the_pipes_service_through_the_gateways_listener() -> None:
    rule, parent = only(ROUTE["spec"]["rules"]), only(ROUTE["spec"]["parentRefs"])
    backend, listener = only(rule["backendRefs"]), only(GATEWAY["spec"]["listeners"])

    assert (backend["name"], backend["port"]) == (SERVICE["metadata"]["name"], only(SERVICE["spec"]["ports"])["port"])
    assert ROUTE["metadata"]["namespace"] == SERVICE["metadata"]["namespace"]
    assert [match["path"] for match in rule["matches"]] == [{"type": "PathPrefix", "value": "/v1"}]
    assert (parent["name"], parent["namespace"]) == (GATEWAY["metadata"]["name"], GATEWAY["metadata"]["namespace"])
    assert parent["sectionName"] == listener["name"]
    assert ROUTE["spec"]["hostnames"] == [listener["hostname"]]
    assert (listener["protocol"], listener["tls"]["mode"]) == ("HTTPS", "Terminate")
    assert listener["allowedRoutes"]["namespaces"]["selector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": ROUTE["metadata"]["namespace"]
    }


def test_the_route_bounds_no_answer() -> None:
    assert only(ROUTE["spec"]["rules"])["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_envoy_gateway_waits_longer_than_the_pipe_and_lets_connections_go_before_it() -> None:
    target, limits = only(TIMEOUTS["spec"]["targetRefs"]), TIMEOUTS["spec"]["timeout"]["http"]

    assert (target["kind"], target["name"]) == ("HTTPRoute", ROUTE["metadata"]["name"])
    assert TIMEOUTS["metadata"]["namespace"] == ROUTE["metadata"]["namespace"]
    assert seconds(limits["streamIdleTimeout"]) > SNAPSHOT.pipe.spec.recovery.max_wait_seconds
    assert seconds(limits["connectionIdleTimeout"]) < server._KEEP_ALIVE_SECONDS


@pytest.mark.parametrize(
    ("port", "passes"), [(API_PORT, True), (RING_PORT, False), (STORE_PORT, False), (TELEMETRY_PORT, False)]
)
def test_a_gateway_whose_namespace_denies_egress_reaches_the_api_and_nothing_else(port: int, passes: bool) -> None:
    manifests = rendered(SNAPSHOT)
    (end_model,) = of_kind(manifests, "Deployment", "end-model")
    listener = Pod("end-model", "default", end_model["spec"]["template"]["metadata"]["labels"])
    gateway = Pod("envoy", GATEWAY["metadata"]["namespace"], {"app": "envoy"})
    policies = [*of_kind(manifests, "NetworkPolicy"), EGRESS]

    assert allowed(policies, gateway, listener, port) is passes


def test_a_gateway_needs_no_further_policy_where_egress_is_free() -> None:
    manifests = rendered(SNAPSHOT)
    (end_model,) = of_kind(manifests, "Deployment", "end-model")
    listener = Pod("end-model", "default", end_model["spec"]["template"]["metadata"]["labels"])

    assert allowed(of_kind(manifests, "NetworkPolicy"), Pod("envoy", "gateways", {}), listener, API_PORT)
