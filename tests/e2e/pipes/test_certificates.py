"""Certificates on a cluster: renewed and rotated under a ring that goes on answering, and refused if another pipe's."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from languagepipes_api.names import Identity
from languagepipes_operator.certificates.authority import KeyPair, issue, new_ca
from support.installation import Installation
from support.kubectl import CommandFailed, Kubectl, wait_for
from support.members import expiries, fetch, lives, pods, role, statuses
from support.metrics_page import metric
from support.serving import Client, condition, pipe, wait_ready

pytestmark = pytest.mark.kubernetes

OF_PIPE = "languagepipes.io/pipe=smollm2"
# A kubelet brings a Secret's files up to date when it next looks at the pod: 10 to 15 s in the test cluster, 60 to 90 s
# elsewhere. A rotation waits for that three times.
SYNC_SECONDS = 180
QUESTION = "Write one long paragraph about the sea."
# Dials as a member or a store's client does, and says what became of it. The files come on stdin.
DIAL = """
import json, socket, ssl, sys, tempfile
asked = json.load(sys.stdin)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.minimum_version = ssl.TLSVersion.TLSv1_3
if asked["certificate"]:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(asked["certificate"] + asked["key"])
        file.flush()
        context.load_cert_chain(file.name)
try:
    with socket.create_connection((asked["host"], asked["port"]), timeout=5) as raw:
        with context.wrap_socket(raw) as link:
            link.sendall(asked["say"].encode())
            link.settimeout(2)
            print("answer", link.recv(4096)[:12])
except TimeoutError:
    print("waits")
except ssl.SSLError as error:
    print("refused", error.reason)
except OSError as error:
    print("refused", type(error).__name__)
"""


@dataclass
class Stream:
    """Answers that were streamed one after the other, and what went wrong."""

    answers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def streaming(client: Client, url: str) -> Iterator[Stream]:
    """Somebody asks without a pause for as long as this is open, and gets at least two answers."""
    stream, over = Stream(), threading.Event()

    def ask() -> None:
        while not over.is_set() or len(stream.answers) < 2:
            try:
                stream.answers.append("".join(client.ask(url, QUESTION, max_tokens=120)))
            except CommandFailed as error:
                stream.errors.append(str(error))
                return

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield stream
    finally:
        over.set()
        asking.join(timeout=300)


@contextmanager
def undisturbed(kubectl: Kubectl, client: Client) -> Iterator[Stream]:
    """No pod of the pipe is made anew or restarts, Ready stays as it is, and every answer is the same."""
    url = wait_ready(kubectl)["status"]["url"]
    before, ready = lives(kubectl), condition(kubectl, "Ready")
    with streaming(client, url) as stream:
        yield stream
    assert stream.errors == []
    assert len(set(stream.answers)) == 1
    assert lives(kubectl) == before
    assert condition(kubectl, "Ready") == ready  # its lastTransitionTime too: it was never False


def leaf_secret(kubectl: Kubectl, selector: str) -> dict[str, Any]:
    return next(
        secret for secret in kubectl.list("secret", f"{OF_PIPE},{selector}") if secret["type"] == "kubernetes.io/tls"
    )


def pair(secret: dict[str, Any]) -> KeyPair:
    return KeyPair(*(base64.b64decode(secret["data"][name]) for name in ("tls.crt", "tls.key")))


def bundle_of(kubectl: Kubectl) -> bytes:
    return base64.b64decode(leaf_secret(kubectl, "languagepipes.io/role=ca")["data"]["ca.crt"])


def replace_leaf(kubectl: Kubectl, secret: dict[str, Any], leaf: KeyPair) -> None:
    data = {"tls.crt": leaf.certificate, "tls.key": leaf.key}
    patch = {"data": {name: base64.b64encode(content).decode() for name, content in data.items()}}
    kubectl("patch", "secret", secret["metadata"]["name"], "--type=merge", "-p", json.dumps(patch))


def test_a_leaf_that_came_due_while_no_operator_ran_is_renewed_under_a_running_ring(
    smollm2: Kubectl, client: Client, operator: Installation
) -> None:
    """As after weeks without an operator: the certificate in use has more than two thirds of its life behind it."""
    place = "languagepipes.io/role=stage,languagepipes.io/stage=2"
    ca = pair(leaf_secret(smollm2, "languagepipes.io/role=ca"))
    identity = Identity(str(smollm2.namespace), "smollm2", 0, "stage", 2)
    due = issue(ca, identity, lifetime=timedelta(minutes=85))  # an hour of which is over
    usual = expiries(smollm2)["stage-2"]
    with undisturbed(smollm2, client):
        operator.kubectl("scale", "deployment/languagepipes-operator", "--replicas=0")
        try:
            operator.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator")
            replace_leaf(smollm2, leaf_secret(smollm2, place), due)
            wait_for(
                "the stage to use the certificate that is due",
                lambda: expiries(smollm2)["stage-2"] == due.x509.not_valid_after_utc.timestamp(),
                timeout_seconds=SYNC_SECONDS,
                every_seconds=2,
            )
        finally:
            operator.kubectl("scale", "deployment/languagepipes-operator", "--replicas=1")
            operator.kubectl("rollout", "status", "deployment/languagepipes-operator", "--timeout=90s")
        renewed = wait_for(
            "a new leaf in the Secret",
            lambda: (now := pair(leaf_secret(smollm2, place))) != due and now,
            timeout_seconds=30,
        )
        assert renewed.x509.not_valid_after_utc.timestamp() > usual
        wait_for(
            "the stage to use the renewed certificate",
            lambda: expiries(smollm2)["stage-2"] == renewed.x509.not_valid_after_utc.timestamp(),
            timeout_seconds=SYNC_SECONDS,
            every_seconds=2,
        )
    others = statuses(smollm2)
    assert {found["bundle"] for found in others.values()} == {hashlib.sha256(bundle_of(smollm2)).hexdigest()}


def test_a_ca_is_rotated_by_an_annotation_under_a_running_ring(smollm2: Kubectl, client: Client) -> None:
    wait_ready(smollm2)
    secret = leaf_secret(smollm2, "languagepipes.io/role=ca")["metadata"]["name"]
    old, expired_at = bundle_of(smollm2), expiries(smollm2)
    bundles, reported = [old], set()
    with undisturbed(smollm2, client):
        smollm2("annotate", "secret", secret, f"languagepipes.io/rotate={int(time.time())}", "--overwrite")

        def over() -> bool:
            if (now := bundle_of(smollm2)) != bundles[-1]:
                bundles.append(now)
            reported.update(found["bundle"] for found in statuses(smollm2).values())
            return len(x509.load_pem_x509_certificates(now)) == 1 and now != old

        wait_for("the end of the rotation", over, timeout_seconds=3 * SYNC_SECONDS, every_seconds=1)
        new = hashlib.sha256(bundles[-1]).hexdigest()
        wait_for(
            "all members to trust the new CA alone",
            lambda: {found["bundle"] for found in statuses(smollm2).values()} == {new},
            timeout_seconds=SYNC_SECONDS,
            every_seconds=2,
        )
    old_ca, new_ca_certificate = (x509.load_pem_x509_certificate(bundles[at]) for at in (0, -1))
    steps = [x509.load_pem_x509_certificates(bundle) for bundle in bundles]
    assert steps == [[old_ca], [old_ca, new_ca_certificate], [new_ca_certificate, old_ca], [new_ca_certificate]]
    assert {hashlib.sha256(bundle).hexdigest() for bundle in bundles[1:3]} <= reported
    assert all(at > expired_at[member] for member, at in expiries(smollm2).items())

    # Connections that are made from now on are of the new CA: a stage starts anew, loads, and joins.
    stage = next(pod for pod in pods(smollm2) if role(pod) == "stage-1")
    smollm2("delete", "pod", stage["metadata"]["name"], "--grace-period=0", "--force")
    wait_for("Ready False", lambda: (condition(smollm2, "Ready") or {}).get("status") == "False", timeout_seconds=15)
    url = wait_ready(smollm2)["status"]["url"]
    assert "Paris" in "".join(client.ask(url, "What is the capital of France?"))


def dial(kubectl: Kubectl, start: dict[str, Any], listener: dict[str, Any], port: int, leaf: KeyPair | None) -> str:
    """What a TLS client with this certificate meets at a member's port, dialling from inside the pod `start`."""
    asked = {
        "host": listener["status"]["podIP"],
        "port": port,
        "certificate": leaf.certificate.decode() if leaf else "",
        "key": leaf.key.decode() if leaf else "",
        "say": "GET /v1/facts HTTP/1.1\r\nHost: store\r\n\r\n" if port == 7443 else "",
    }
    name = start["metadata"]["name"]
    return last_line(kubectl("exec", "-i", name, "--", "python", "-c", DIAL, stdin=json.dumps(asked)))


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_ring_and_store_refuse_who_has_no_certificate_of_the_pipe(smollm2: Kubectl) -> None:
    """From where the network lets them in: a neighbour's pod. The neighbour's own certificate is let in."""
    wait_ready(smollm2)
    smollm2.apply(pipe("other", replicas=0))
    try:
        ca = wait_for(
            "another pipe's CA",
            lambda: smollm2.list("secret", "languagepipes.io/pipe=other,languagepipes.io/role=ca"),
        )
        members = {role(pod): pod for pod in pods(smollm2)}
        first = Identity(str(smollm2.namespace), "smollm2", 0, "end-model")
        own = Identity(str(smollm2.namespace), "other", 0, "end-model")
        stage = members["stage-1"]
        strangers = {
            "another pipe's member": issue(pair(ca[0]), own),
            "another pipe's, under our name": issue(pair(ca[0]), first),
            "self-made, under our name": issue(new_ca(str(smollm2.namespace), "smollm2"), first),
            "no certificate": None,
        }

        def refusals(reason: str) -> float:
            text = fetch(smollm2, stage["metadata"]["name"], "/metrics")
            return metric(text, "languagepipes_refused_hellos_total", absent=0, reason=reason)

        before = {reason: refusals(reason) for reason in ("tls", "not_predecessor", "no_hello")}
        for start, listener, port in ((members["end-model"], stage, 7070), (stage, members["store"], 7443)):
            for who, leaf in strangers.items():
                met = dial(smollm2, start, listener, port, leaf)
                assert met.startswith("refused"), f"{who} at {role(listener)}:{port}: {met}"
        assert refusals("tls") == before["tls"] + len(strangers)

        third = pair(leaf_secret(smollm2, "languagepipes.io/role=stage,languagepipes.io/stage=3"))
        assert dial(smollm2, members["end-model"], stage, 7070, third).startswith("answer")  # a frame that says why not
        assert refusals("not_predecessor") == before["not_predecessor"] + 1

        end_model = pair(leaf_secret(smollm2, "languagepipes.io/role=end-model"))
        assert not dial(smollm2, members["end-model"], stage, 7070, end_model).startswith("refused")
        wait_for("the stage to have waited for a hello", lambda: refusals("no_hello") == before["no_hello"] + 1)
        assert dial(smollm2, stage, members["store"], 7443, end_model).startswith("answer b'HTTP/1.1 200")
        wait_ready(smollm2)
    finally:
        smollm2("delete", "lp", "other", "--wait=true", "--timeout=60s")
