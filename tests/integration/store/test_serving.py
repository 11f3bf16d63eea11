"""What the store serves, to whom, and how its client waits for it. Real sockets, real TLS."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from languagepipes_api.names import Identity
from languagepipes_node import metrics
from languagepipes_node.health import MemberState
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.store import server as server_module
from languagepipes_node.store.server import StoreServer
from languagepipes_node.store.state import StoreState
from languagepipes_node.weights import remote
from languagepipes_node.weights.errors import HashMismatch, StoreFailed, StoreRefused, StoreUnavailable
from languagepipes_node.weights.remote import StoreClient
from languagepipes_operator.certificates.authority import new_ca
from support.filled_store import fill
from support.llama_files import LAYERS, repository, tensors
from support.store_connections import raw_connection
from support.store_members import END_MODEL, STAGE, STORE, TlsFor

Serve = Callable[[StoreState], StoreServer]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    for name, data in repository(shards=2).items():
        if "/" not in name and name != "consolidated.safetensors":
            (directory / name).write_bytes(data)
    (tmp_path / "secret.json").write_text("{}")
    return directory


@pytest.fixture
def store_state(model_dir: Path, tmp_path: Path) -> StoreState:
    store_state = fill(model_dir.as_uri(), tmp_path / "cache")
    assert store_state.phase == "Ready", store_state.error
    return store_state


@pytest.fixture
def serve(tls_for: TlsFor) -> Iterator[Callable[..., StoreServer]]:
    servers: list[StoreServer] = []

    def start(store_state: StoreState, *, listen: str = "127.0.0.1:0", identity: Identity = STORE) -> StoreServer:
        server = StoreServer(listen, tls_for(identity), STORE, store_state)
        server.start(stop_poll_seconds=0.02)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def client_of(server: StoreServer, tls: TlsFiles, **settings) -> StoreClient:
    settings.setdefault("patience_seconds", 0)
    return StoreClient(f"127.0.0.1:{server.port}", tls, **settings)


def layer_names(client: StoreClient, layers: range) -> list[str]:
    return [name for name in client.names() if any(name.startswith(f"model.layers.{layer}.") for layer in layers)]


def test_a_stage_gets_its_tensors_and_reads_no_other_byte(
    store_state: StoreState, serve: Serve, tls_for: TlsFor
) -> None:
    server, expected = serve(store_state), tensors()
    for stage in (1, 2):
        identity = Identity("default", "pipe", 0, "stage", stage)
        counter = metrics.STORE_SERVED_BYTES.labels(f"replica-0/stage-{stage}")
        before, own = counter._value.get(), 0
        with client_of(server, tls_for(identity)) as client:
            for name in layer_names(client, range(stage - 1, stage)):
                info = client.info(name)
                data = bytearray(info.nbytes)
                client.read_into(name, memoryview(data))
                own += info.nbytes
                assert np.array_equal(np.frombuffer(data, np.float32).reshape(info.shape), expected[name])
        assert own > 0
        assert counter._value.get() - before <= 1.02 * own


def test_rows_and_small_files_can_be_read_alone(store_state: StoreState, serve: Serve, tls_for: TlsFor) -> None:
    with client_of(serve(store_state), tls_for(END_MODEL)) as client:
        assert client.facts().layer_count == LAYERS
        assert json.loads(client.file("config.json"))["model_type"] == "llama"
        with pytest.raises(KeyError):
            client.file("secret.json")
        rows = bytearray(2 * 32 * 4)
        client.read_rows_into("model.embed_tokens.weight", 5, 2, memoryview(rows))
        assert np.array_equal(
            np.frombuffer(rows, np.float32).reshape(2, 32), tensors()["model.embed_tokens.weight"][5:7]
        )
        with pytest.raises(ValueError, match="no rows"):
            client.read_rows_into("model.embed_tokens.weight", 95, 2, memoryview(rows))
        with pytest.raises(ValueError, match="128 bytes do not go into 256"):
            client.read_into("model.norm.weight", memoryview(rows))


RANGES = [
    (None, 200, (0, None)),
    ("bytes=0-9", 206, (0, 10)),
    ("bytes=10-", 206, (10, None)),
    ("bytes=-7", 206, (-7, None)),
    ("bytes=5-999999", 206, (5, None)),
    ("bytes=999999-", 416, None),
    ("bytes=9-5", 416, None),
    ("bytes=0-1,4-5", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=" + "9" * 400 + "-", 416, None),
    ("lines=0-1", 416, None),
]


@pytest.mark.parametrize(("asked", "status", "span"), RANGES)
def test_a_single_range_is_served_and_any_other_refused(
    store_state: StoreState,
    serve: Serve,
    tls_for: TlsFor,
    asked: str | None,
    status: int,
    span: tuple[int, int | None] | None,
) -> None:
    whole = store_state.paths["config.json"].read_bytes()
    with raw_connection(serve(store_state), tls_for(STAGE)) as connection:
        connection.request("GET", "/v1/files/config.json", headers={"Range": asked} if asked else {})
        response = connection.getresponse()
        body = response.read()
        assert response.status == status
        assert body == (whole[span[0] : span[1]] if span else b"")
        if status == 416:
            assert response.headers["Content-Range"] == f"bytes */{len(whole)}"
        connection.request("GET", "/v1/progress")  # the connection goes on
        assert json.loads(connection.getresponse().read())["phase"] == "Ready"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/../secret.json",
        "/v1/files/%2e%2e%2fsecret.json",
        "/v1/files//etc/passwd",
        "/v1/files/%2Fetc%2Fpasswd",
        "/v1/files/README.md",
        "/v1/files/pytorch_model.bin",
        "/v1/files/",
        "/v1/files/config.json%00.txt",
        "/",
        "/metrics",
    ],
)
def test_nothing_outside_the_index_is_served(store_state: StoreState, serve: Serve, tls_for: TlsFor, path: str) -> None:
    with raw_connection(serve(store_state), tls_for(STAGE)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 404
        assert json.loads(response.read())["error"]["reason"] == "NotFound"


def test_a_member_waits_for_a_store_of_the_planned_revision_and_says_so(
    store_state: StoreState, model_dir: Path, tmp_path: Path, serve: Serve, tls_for: TlsFor
) -> None:
    """Also between two reads: the store was replaced by one of another commit, whose index names the same tensors."""
    assert store_state.facts is not None
    planned = store_state.facts.revision
    server, said, paused = serve(store_state), [], []

    def put_back_in_a_while(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            server.store_state = store_state

    with client_of(
        server,
        tls_for(STAGE),
        revision=planned,
        patience_seconds=None,
        waiting=said.append,
        sleep=put_back_in_a_while,
    ) as client:
        right = client.file("config.json")
        later = Path(shutil.copytree(model_dir, tmp_path / "later"))
        (later / "config.json").write_text(json.dumps({**json.loads(right), "rope_theta": 7.0}))
        other = fill(later.as_uri(), tmp_path / "other-cache")
        assert other.facts is not None
        assert other.facts.revision != planned
        server.store_state = other
        assert client.file("config.json") == right
        assert len(paused) == 3
        assert len(said) == 1
        assert f"the store has revision {other.facts.revision} of the model, and the plan is for {planned}" in said[0]
        assert "delete the pipe and apply it again" in said[0]
    server.store_state = other
    with client_of(server, tls_for(STAGE), revision=planned) as client, pytest.raises(StoreUnavailable, match=planned):
        client.index()
    with client_of(server, tls_for(STAGE), revision=other.facts.revision) as client:
        assert client.file("config.json") != right


def test_strangers_are_refused(store_state: StoreState, serve: Serve, tls_for: TlsFor) -> None:
    server, stranger_ca = serve(store_state), new_ca("default", "pipe")
    stranger = tls_for(STAGE, authority=stranger_ca)  # trusts the store, but is of another CA
    with client_of(server, stranger) as client, pytest.raises(StoreUnavailable):
        client.progress()
    distrusting = tls_for(STAGE, trust=stranger_ca)
    with client_of(server, distrusting) as client, pytest.raises(StoreUnavailable, match="not of this pipe's CA"):
        client.progress()
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
        anonymous.wrap_socket(raw) as secured,
        pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
    ):
        secured.recv(100)  # in TLS 1.3 the client learns of the refusal when it reads


def test_a_member_of_another_pipe_is_refused_even_under_the_same_ca(
    store_state: StoreState, serve: Serve, tls_for: TlsFor
) -> None:
    server = serve(store_state)
    for other in (Identity("default", "other", 0, "stage", 1), Identity("elsewhere", "pipe", 0, "stage", 1)):
        with client_of(server, tls_for(other)) as client:
            with pytest.raises(StoreRefused, match="this store belongs to default/pipe"):
                client.progress()
            with pytest.raises(StoreRefused, match="this store belongs to default/pipe"):
                client.facts()


def test_a_member_that_poses_as_the_store_is_refused(store_state: StoreState, serve: Serve, tls_for: TlsFor) -> None:
    impostor = serve(store_state, identity=STAGE)
    with client_of(impostor, tls_for(END_MODEL)) as client, pytest.raises(StoreRefused, match="not as a weights store"):
        client.facts()


def test_a_client_waits_until_the_file_is_verified(store_state: StoreState, serve: Serve, tls_for: TlsFor) -> None:
    ready = dict(store_state.paths)
    waiting = StoreState(phase="Downloading", done_bytes=1, total_bytes=2)
    server = serve(waiting)
    with raw_connection(server, tls_for(STAGE)) as connection:
        connection.request("GET", "/v1/facts")
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert json.loads(response.read())["error"]["reason"] == "StoreUnavailable"
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            waiting.index_json, waiting.index = store_state.index_json, store_state.index
        if len(pauses) == 4:
            waiting.paths = ready

    with client_of(server, tls_for(STAGE), patience_seconds=None, sleep=sleep) as client:
        data = bytearray(client.info("model.norm.weight").nbytes)
        client.read_into("model.norm.weight", memoryview(data))
        assert bytes(data) == tensors()["model.norm.weight"].tobytes()
    assert len(pauses) == 4


def test_a_member_stays_alive_while_a_large_tensor_comes_in_pieces(
    store_state: StoreState, serve: Serve, tls_for: TlsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PIECE_BYTES", 1024)
    state, alive_half_way = MemberState("stage", "loading"), []
    data = bytearray(tensors()["model.embed_tokens.weight"].nbytes)

    def moving() -> None:
        state.moving()
        if not any(data[-1024:]):
            alive_half_way.append(state.alive)

    with client_of(serve(store_state), tls_for(STAGE), moving=moving) as client:
        client.index()
        state.progressed_at -= 3600
        client.read_into("model.embed_tokens.weight", memoryview(data))
    assert all(alive_half_way)
    assert len(alive_half_way) >= 2


def test_a_member_stays_alive_while_its_store_is_away(store_state: StoreState, serve: Serve, tls_for: TlsFor) -> None:
    server = serve(store_state)
    server.stop()
    state = MemberState("stage", "loading")
    state.progressed_at -= 3600
    client = client_of(server, tls_for(STAGE), patience_seconds=0.2, moving=state.moving)
    with client, pytest.raises(StoreUnavailable):
        client.index()
    assert state.alive


def test_a_store_that_failed_for_good_ends_the_wait_with_its_reason(serve: Serve, tls_for: TlsFor) -> None:
    failed = StoreState(phase="Failed", error=HashMismatch("model.safetensors: wrong"))
    with client_of(serve(failed), tls_for(STAGE), patience_seconds=None) as client:
        with pytest.raises(StoreFailed) as caught:
            client.facts()
        assert (caught.value.reason, str(caught.value)) == ("HashMismatch", "model.safetensors: wrong")
        assert client.progress()["error"] == {"reason": "HashMismatch", "message": "model.safetensors: wrong"}


def test_a_store_that_goes_away_and_comes_back_is_waited_for(
    store_state: StoreState, serve: Serve, tls_for: TlsFor
) -> None:
    first = serve(store_state)
    port = first.port
    back = threading.Event()

    def sleep(seconds: float) -> None:
        if not back.is_set():
            back.set()
            serve(store_state, listen=f"127.0.0.1:{port}")

    with client_of(first, tls_for(STAGE), patience_seconds=None, sleep=sleep) as client:
        assert client.facts().layer_count == LAYERS
        first.stop()
        client.close()  # as a broken connection would
        data = bytearray(client.info("model.norm.weight").nbytes)
        client.read_into("model.norm.weight", memoryview(data))
    assert bytes(data) == tensors()["model.norm.weight"].tobytes()
    assert back.is_set()


def test_silent_strangers_hold_up_nobody(
    store_state: StoreState, serve: Serve, tls_for: TlsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.3)
    server = serve(store_state)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    started = time.monotonic()
    with client_of(server, tls_for(STAGE)) as client:
        client.facts()
    assert time.monotonic() - started < 2
    for connection in silent:
        connection.settimeout(5)
        assert connection.recv(1) == b""  # hung up on, once the deadline is over
        connection.close()


def test_the_number_of_connections_is_bounded(
    store_state: StoreState, serve: Serve, tls_for: TlsFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    server, tls = serve(store_state), tls_for(STAGE)
    open_clients = [client_of(server, tls) for _ in range(3)]
    for client in open_clients:
        client.progress()
    with client_of(server, tls) as late, pytest.raises(StoreUnavailable):
        late.progress()
    open_clients[0].close()
    with client_of(server, tls, patience_seconds=5, sleep=lambda seconds: time.sleep(0.02)) as late:
        assert late.facts().layer_count == LAYERS
    for client in open_clients:
        client.close()


def test_a_file_changed_under_the_store_is_not_served(
    store_state: StoreState, serve: Serve, tls_for: TlsFor, model_dir: Path
) -> None:
    with client_of(serve(store_state), tls_for(STAGE)) as client:
        entry = client.index().tensors["model.norm.weight"]
        (model_dir / entry.file).write_bytes(b"short")
        with pytest.raises(StoreFailed, match="was changed while it was served"):
            client.read_into("model.norm.weight", memoryview(bytearray(entry.nbytes)))
