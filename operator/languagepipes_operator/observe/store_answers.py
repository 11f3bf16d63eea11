"""Reads a weights store's answers, for `up` and for the operator on a cluster: who answers, and what the answer holds.

The callers hold the connections: one asks with threads, the other in an event loop. The answers are described in
`languagepipes_api.store_answers`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx
from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import Identity
from languagepipes_api.store_answers import Problem, StoreRefusal
from pydantic import ValidationError


def client_context(bundle: str, *, certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 towards a store, with a certificate and its key (PEM files). bundle: PEM of the authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The URI SAN identifies the store; our certificates hold no host names.
    context.check_hostname = False
    context.load_verify_locations(cadata=bundle)
    context.load_cert_chain(certificate, key)
    return context


def is_from(response: httpx.Response, store: Identity) -> bool:
    """Whether that store answers. Only while the response is open: its connection has the certificate."""
    connection = response.extensions["network_stream"].get_extra_info("ssl_object")
    names = (connection.getpeercert() or {}).get("subjectAltName", ())
    return bool(names == (("URI", store.uri),))


def facts_in(response: httpx.Response) -> ModelFacts | Problem:
    """What a /v1/facts of status 200 holds."""
    try:
        return ModelFacts.from_json(response.json()["facts"])
    except (ValueError, KeyError, TypeError) as error:
        return Problem(
            reason="FactsUnreadable",
            message=f"the store's answer is not what this version reads ({error!r}): "
            "install operator and node of one version",
        )


def refusal_of(response: httpx.Response) -> Problem:
    """Why the store has no facts: its own message where there is one."""
    try:
        return StoreRefusal.model_validate_json(response.content).error
    except ValidationError:
        return Problem(reason="StoreError", message=f"the store answers {response.status_code}")
