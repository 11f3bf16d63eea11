"""`up` believes the pipe's own store and nobody else, and a member that says nothing holds up nobody."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from languagepipes_api.facts import LayerFacts, ModelFacts
from languagepipes_api.names import TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity
from languagepipes_api.store_answers import Problem, StoreProgress
from languagepipes_operator.cli.up.authority import Credentials
from languagepipes_operator.cli.up.observe import Observer, SourceFailed, StoreObserver
from support.waiting import eventually

pytestmark = pytest.mark.timeout(30)

STORE = Identity("default", "tiny", -1, "store")
STAGE = Identity("default", "tiny", 0, "stage", 1)
OPERATOR = Identity("default", "tiny", -1, "operator")
FACTS = ModelFacts(
    revision="abc",
    family="llama",
    layers=(LayerFacts(10, 10), LayerFacts(20, 20)),
    hidden_size=8,
    vocabulary_size=16,
    attention_heads=2,
    kv_heads=1,
    head_dim=4,
    intermediate_size=16,
    embedding_parameters=128,
    head_parameters=128,
    norm_parameters=8,
    tied_embeddings=True,
    max_position=64,
    stored_dtype="float32",
    download_bytes=1000,
)


class Answers:
    """What the next requests are answered with, by path; who asked is kept."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[int, object]] = {}
        self.asked_by: list[object] = []


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return Credentials(tmp_path / "tls", namespace="default", pipe="tiny")


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def serve(credentials: Credentials, answers: Answers) -> Iterator[Callable[..., str]]:
    """`serve(identity)`: an HTTPS server that asks for certificates, holding `identity`'s; its address."""
    servers = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert isinstance(self.connection, ssl.SSLSocket)
            answers.asked_by.append((self.connection.getpeercert() or {}).get("subjectAltName"))
            status, body = answers.by_path[self.path]
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    def start(identity: Identity) -> str:
        directory = credentials.issue(identity)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / TLS_CERTIFICATE_FILE, directory / TLS_KEY_FILE)
        context.load_verify_locations(directory / TLS_CA_FILE)
        context.verify_mode = ssl.CERT_REQUIRED
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask(credentials: Credentials) -> Iterator[Callable[[str], StoreObserver]]:
    observers = []

    def make(address: str) -> StoreObserver:
        observers.append(StoreObserver(address, tls_dir=credentials.issue(OPERATOR), store=STORE))
        return observers[-1]

    yield make
    for observer in observers:
        observer.close()


def test_facts_come_from_the_store_and_it_sees_the_operator(
    serve: Callable[..., str], ask: Callable[[str], StoreObserver], answers: Answers
) -> None:
    answers.by_path["/v1/facts"] = (200, {"facts": FACTS.to_json()})

    assert ask(serve(STORE)).facts() == FACTS
    assert answers.asked_by == [(("URI", OPERATOR.uri),)]


def test_a_store_that_still_resolves_says_so(
    serve: Callable[..., str], ask: Callable[[str], StoreObserver], answers: Answers
) -> None:
    answers.by_path["/v1/facts"] = (503, {"error": {"reason": "HubUnreachable", "message": "tries again"}})

    answers.by_path["/v1/progress"] = (
        200,
        {"phase": "Resolving", "error": {"reason": "HubUnreachable", "message": "tries again"}},
    )
    store = ask(serve(STORE))
    assert store.facts() is None
    assert store.progress() == StoreProgress(
        phase="Resolving", error=Problem(reason="HubUnreachable", message="tries again")
    )


def test_a_source_that_failed_for_good_raises_its_reason(
    serve: Callable[..., str], ask: Callable[[str], StoreObserver], answers: Answers
) -> None:
    answers.by_path["/v1/facts"] = (500, {"error": {"reason": "NotFound", "message": "no such model"}})

    with pytest.raises(SourceFailed, match="no such model") as failure:
        ask(serve(STORE)).facts()
    assert failure.value.reason == "NotFound"


@pytest.mark.parametrize(
    "body",
    [{"facts": {}}, {"facts": []}, {}, [], "text", {"facts": {**FACTS.to_json(), "layers": 3}}],
)
def test_facts_of_another_version_are_refused_with_the_remedy(
    serve: Callable[..., str], ask: Callable[[str], StoreObserver], answers: Answers, body: object
) -> None:
    answers.by_path["/v1/facts"] = (200, body)

    with pytest.raises(SourceFailed, match="install operator and node of one version"):
        ask(serve(STORE)).facts()


def test_a_member_that_is_not_the_store_is_not_believed(
    serve: Callable[..., str], ask: Callable[[str], StoreObserver], answers: Answers
) -> None:
    answers.by_path["/v1/facts"] = (200, {"facts": FACTS.to_json()})
    answers.by_path["/v1/progress"] = (200, {"phase": "Ready"})

    observer = ask(serve(STAGE))

    assert observer.facts() is None
    assert observer.progress() is None


def test_a_store_under_another_authority_is_not_believed(
    serve: Callable[..., str], tmp_path: Path, answers: Answers
) -> None:
    answers.by_path["/v1/facts"] = (200, {"facts": FACTS.to_json()})
    others = Credentials(tmp_path / "others", namespace="default", pipe="tiny")

    with closing(StoreObserver(serve(STORE), tls_dir=others.issue(OPERATOR), store=STORE)) as observer:
        assert observer.facts() is None


def test_nobody_at_the_address_is_no_answer(ask: Callable[[str], StoreObserver]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert ask(f"127.0.0.1:{closed.getsockname()[1]}").facts() is None


def test_a_silent_member_holds_up_nobody(
    serve: Callable[..., str], ask: Callable[[str], StoreObserver], answers: Answers
) -> None:
    answers.by_path["/v1/progress"] = (200, {"phase": "Downloading", "done_bytes": 5, "total_bytes": 10})
    with socket.create_server(("127.0.0.1", 0)) as silent, Observer() as observer:
        observer.watch("stage-1", f"127.0.0.1:{silent.getsockname()[1]}")
        observer.watch_store(ask(serve(STORE)))

        started = time.monotonic()
        observer.observe()
        assert time.monotonic() - started < 0.5

        eventually(lambda: observer.observe().progress)
        seen = observer.observe()
        assert seen.progress is not None
        assert seen.progress.done_bytes == 5
        assert seen.members == {"stage-1": None}


def test_certificates_are_renewed_at_two_thirds_of_their_life(credentials: Credentials) -> None:
    directory = credentials.issue(STAGE)
    before = (directory / TLS_CERTIFICATE_FILE).read_bytes()

    assert credentials.renew(datetime.now(UTC) + timedelta(days=59)) == []
    assert credentials.renew(datetime.now(UTC) + timedelta(days=61)) == [STAGE]

    assert (directory / TLS_CERTIFICATE_FILE).read_bytes() != before


def test_the_authoritys_key_is_in_no_file(credentials: Credentials, tmp_path: Path) -> None:
    credentials.issue(STAGE)
    credentials.issue(STORE)

    keys = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]

    assert sorted(path.parent.name for path in keys) == ["stage-1", "store"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)
