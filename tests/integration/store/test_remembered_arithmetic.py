"""What members measured, at a real store: the first word stands, outlives the store, and is for its pipe's members."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from languagepipes_api.names import Identity
from languagepipes_api.store_answers import ArithmeticChoice, ArithmeticChoices
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.store import server as server_module
from languagepipes_node.store.server import StoreServer
from languagepipes_node.store.state import StoreState
from languagepipes_node.weights.remote import StoreClient
from support.store_connections import raw_connection
from support.store_members import END_MODEL, STAGE, STORE, TlsFor

KEY = "5" * 64
PATH = f"/v1/arithmetic/{KEY}"


def choices(*rows: int) -> ArithmeticChoices:
    return ArithmeticChoices(
        choices=tuple(ArithmeticChoice(rows=least, dtype="float32", native=False, whole=False) for least in rows)
    )


@pytest.fixture
def serve(tls_for: TlsFor) -> Iterator[Callable[[Path], StoreServer]]:
    """Starts a store whose cache has this file."""
    servers: list[StoreServer] = []

    def start(file: Path) -> StoreServer:
        state = StoreState()
        state.arithmetic.keep_in(file)
        server = StoreServer("127.0.0.1:0", tls_for(STORE), STORE, state)
        server.start(stop_poll_seconds=0.02)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def client_of(server: StoreServer, tls: TlsFiles) -> StoreClient:
    return StoreClient(f"127.0.0.1:{server.port}", tls, patience_seconds=0)


def test_the_first_word_stands_and_outlives_the_store(
    serve: Callable[[Path], StoreServer], tls_for: TlsFor, tmp_path: Path
) -> None:
    file = tmp_path / "arithmetic.json"
    server = serve(file)
    with client_of(server, tls_for(STAGE)) as stage, client_of(server, tls_for(END_MODEL)) as end_model:
        assert stage.arithmetic(KEY) is None
        assert stage.remember_arithmetic(KEY, choices(1, 16)) == choices(1, 16)
        assert end_model.remember_arithmetic(KEY, choices(1)) == choices(1, 16)
        assert end_model.arithmetic(KEY) == choices(1, 16)
        assert end_model.arithmetic("6" * 64) is None
        # Another store that shares the cache.
        with client_of(serve(file), tls_for(STAGE)) as other:
            assert other.arithmetic(KEY) == choices(1, 16)
            other.remember_arithmetic("7" * 64, choices(1))
        stage.remember_arithmetic("8" * 64, choices(1))
    assert json.loads(file.read_text()).keys() == {KEY, "7" * 64, "8" * 64}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"5": {"choices": []}}', '{"5": 3}'])
def test_a_file_that_cannot_be_read_is_begun_anew(
    serve: Callable[[Path], StoreServer], tls_for: TlsFor, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "arithmetic.json"
    file.write_text(text)
    with client_of(serve(file), tls_for(STAGE)) as client:
        assert client.arithmetic(KEY) is None
        assert client.remember_arithmetic(KEY, choices(1)) == choices(1)
    assert json.loads(file.read_text()).keys() == {KEY}


def test_a_cache_that_cannot_be_written_costs_the_members_nothing(
    serve: Callable[[Path], StoreServer], tls_for: TlsFor, tmp_path: Path
) -> None:
    with client_of(serve(tmp_path / "absent" / "arithmetic.json"), tls_for(STAGE)) as client:
        assert client.remember_arithmetic(KEY, choices(1)) == choices(1)
        assert client.arithmetic(KEY) == choices(1)


GOOD = choices(1).model_dump_json()
ONE = GOOD.partition("[")[2].partition("]")[0]
REFUSED = {
    "no JSON": (PATH, "{", "Invalid JSON"),
    "no choices": (PATH, '{"choices": []}', "at least 1 item"),
    "too many": (PATH, GOOD.replace(ONE, ",".join([ONE] * 17)), "at most 16 items"),
    "not from one row on": (PATH, GOOD.replace('"rows":1', '"rows":2'), "they have to ascend from 1"),
    "another dtype": (PATH, GOOD.replace("float32", "float8"), "Input should be 'float32', 'bfloat16' or 'float16'"),
    "more than it knows": (PATH, GOOD.replace('"rows"', '"run": "x", "rows"'), "Extra inputs are not permitted"),
    "too long": (PATH, GOOD + " " * 4096, "in 1 to 4096 bytes"),
    "nothing": (PATH, "", "in 1 to 4096 bytes"),
    "no digest": ("/v1/arithmetic/../../x", GOOD, "only /v1/arithmetic/SHA256 is put"),
    "a file": ("/v1/files/config.json", GOOD, "only /v1/arithmetic/SHA256 is put"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_choice_is_refused(
    serve: Callable[[Path], StoreServer], tls_for: TlsFor, tmp_path: Path, case: str
) -> None:
    path, body, words = REFUSED[case]
    server = serve(tmp_path / "arithmetic.json")
    with raw_connection(server, tls_for(STAGE)) as connection:
        connection.request("PUT", path, body)
        response = connection.getresponse()
        assert response.status == 400
        assert words in json.loads(response.read())["error"]["message"]
        connection.request("GET", PATH)  # over the same connection, or another where the body was not read
        assert connection.getresponse().status == 404
    assert list(tmp_path.iterdir()) == []


def test_another_pipes_member_neither_reads_nor_writes(
    serve: Callable[[Path], StoreServer], tls_for: TlsFor, tmp_path: Path
) -> None:
    server = serve(tmp_path / "arithmetic.json")
    with client_of(server, tls_for(STAGE)) as client:
        client.remember_arithmetic(KEY, choices(1))
    for method, body in (("GET", None), ("PUT", GOOD)):
        with raw_connection(server, tls_for(Identity("default", "other", 0, "stage", 1))) as connection:
            connection.request(method, PATH, body)
            response = connection.getresponse()
            assert response.status == 403
            assert json.loads(response.read())["error"]["reason"] == "WrongPipe"


def test_a_store_of_an_earlier_version_remembers_nothing_and_serves_on(
    serve: Callable[[Path], StoreServer], tls_for: TlsFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(server_module._Exchange, "do_PUT")
    with client_of(serve(tmp_path / "arithmetic.json"), tls_for(STAGE)) as client:
        assert client.remember_arithmetic(KEY, choices(1)) is None
        assert client.arithmetic(KEY) is None
        assert client.progress()["phase"] == "Resolving"
