"""A weights store's answers, as `up` and the operator on a cluster both read them: who answers, and what it answers.

The callers hold the sessions, and decide when to ask.
"""

from __future__ import annotations

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from languagepipes_api.facts import ModelFacts
from languagepipes_api.names import Identity
from languagepipes_api.store_answers import Problem, StoreRefusal
from pydantic import ValidationError


@dataclass(frozen=True)
class Answer:
    """status: of HTTP."""

    status: int
    content: bytes


def client_context(bundle: str, *, certificate: Path, key: Path, store: Identity) -> ssl.SSLContext:
    """TLS 1.3 with a certificate and its key (PEM files) towards that store alone. bundle: PEM of the authorities."""

    class Peer(ssl.SSLObject):
        """The URI SAN states who it is; host names are in no certificate of ours."""

        def do_handshake(self) -> None:
            super().do_handshake()
            names = (self.getpeercert() or {}).get("subjectAltName", ())
            if names != (("URI", store.uri),):
                raise ssl.SSLCertVerificationError(f"the certificate is for {names}, not for {store.uri}")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslobject_class = Peer
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=bundle)
    context.load_cert_chain(certificate, key)
    return context


def open_session(url: str, context: ssl.SSLContext, *, answer_seconds: float) -> aiohttp.ClientSession:
    """To the store at that address."""
    timeout = aiohttp.ClientTimeout(total=None, connect=answer_seconds, sock_read=answer_seconds)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=context), timeout=timeout)


async def ask(http: aiohttp.ClientSession, path: str) -> Answer | None:
    """None without an answer, or if it is not the store that answers."""
    try:
        async with http.get(path, allow_redirects=False) as response:
            return Answer(response.status, await response.read())
    except (aiohttp.ClientError, OSError):
        return None


def facts_in(answer: Answer) -> ModelFacts | Problem:
    """What a /v1/facts of status 200 holds."""
    try:
        return ModelFacts.from_json(json.loads(answer.content)["facts"])
    except (ValueError, KeyError, TypeError) as error:
        return Problem(
            reason="FactsUnreadable",
            message=f"the store's answer is not what this version reads ({error!r}): "
            "install operator and node of one version",
        )


def refusal_of(answer: Answer) -> Problem:
    """Why the store has no facts, in its own words where there are any."""
    try:
        return StoreRefusal.model_validate_json(answer.content).error
    except ValidationError:
        return Problem(reason="StoreError", message=f"the store answers {answer.status}")
