"""https:// mirrors, pvc:// claims, file:// paths, and GGUF files through the store."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from languagepipes_node.store.sources import open_source
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.errors import WeightsError
from support.filled_store import fill
from support.llama_files import LAYERS, fetched_names, repository
from support.stand_in_hub import StandIn
from support.weight_files import write_gguf_model


class _Files(BaseHTTPRequestHandler):
    """A plain file server with ranges, as any object store is."""

    protocol_version = "HTTP/1.1"

    def __init__(self, files: dict[str, bytes], asked: list[str], *arguments) -> None:
        self.files, self.asked = files, asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/models/tiny/")
        data = self.files.get(name)
        self.asked.append(f"{name} {self.headers.get('Range', '')}".strip())
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        begin, end = 0, len(data)
        if (asked := self.headers.get("Range")) and data:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last) + 1) if last else end
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[begin:end])

    def log_message(self, format: str, *args) -> None:
        pass


class Mirror:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        handler = functools.partial(_Files, self.files, self.asked)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/models/tiny"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    threading.Thread(target=mirror.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_mirror_is_fetched_by_known_names(mirror: Mirror, tmp_path: Path, shards: int) -> None:
    files = repository(shards=shards)
    mirror.files.update(files)
    store_state = fill(mirror.url, tmp_path)
    assert store_state.phase == "Ready", store_state.error
    assert {name: path.read_bytes() for name, path in store_state.paths.items()} == {
        name: files[name] for name in fetched_names(files)
    }
    mirror.asked.clear()
    assert fill(mirror.url, tmp_path).phase == "Ready"
    assert mirror.asked == []


def test_a_mirrors_published_sums_are_verified(mirror: Mirror, tmp_path: Path) -> None:
    files = repository()
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    mirror.files.update(files | {"SHA256SUMS": lines.encode()})
    assert fill(mirror.url, tmp_path / "good").phase == "Ready"
    damaged = bytearray(files["model.safetensors"])
    damaged[-1] ^= 1
    mirror.files["model.safetensors"] = bytes(damaged)
    store_state = fill(mirror.url, tmp_path / "bad")
    assert (store_state.phase, store_state.error.reason) == ("Failed", "HashMismatch")


def test_a_mirror_that_lacks_a_shard_says_which(mirror: Mirror, tmp_path: Path) -> None:
    files = repository(shards=2)
    del files["model-00002-of-00002.safetensors"]
    mirror.files.update(files)
    store_state = fill(mirror.url, tmp_path)
    assert (store_state.phase, store_state.error.reason) == ("Failed", "FileNotFoundAtSource")
    assert "names 'model-00002-of-00002.safetensors', which is not there" in str(store_state.error)


def test_a_left_over_index_of_shards_that_are_gone_does_not_matter(mirror: Mirror, tmp_path: Path) -> None:
    files = repository()
    index = {"model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'}
    mirror.files.update(files | index)
    directory = tmp_path / "directory"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", *index):
        (directory / name).write_bytes((files | index)[name])
    for source in (mirror.url, f"file://{directory}"):
        store_state = fill(source, tmp_path / "cache")
        assert store_state.phase == "Ready", store_state.error
        assert "model.safetensors" in store_state.paths


def test_an_empty_mirror_says_what_it_looked_for(mirror: Mirror, tmp_path: Path) -> None:
    store_state = fill(mirror.url, tmp_path)
    assert store_state.error.reason == "FileNotFoundAtSource"
    assert str(store_state.error).endswith(
        "has neither model.safetensors nor model.safetensors.index.json nor config.json; correct spec.model.source"
    )


def gguf_model(path: Path) -> bytes:
    write_gguf_model(path)
    return path.read_bytes()


def test_a_gguf_on_a_mirror_has_facts_first_and_is_converted_once(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["tiny.gguf"] = gguf_model(tmp_path / "tiny.gguf")
    phases: list[str] = []

    def watch(store_state) -> None:
        if not phases or phases[-1] != store_state.phase:
            phases.append(store_state.phase)
        if store_state.phase == "Downloading":
            assert store_state.facts is not None

    url = f"{mirror.url}/tiny.gguf"
    store_state = fill(url, tmp_path / "cache", dtype="bfloat16", on_progress=watch)
    assert store_state.phase == "Ready", store_state.error
    assert phases == ["Resolving", "Downloading", "Verifying", "Converting", "Ready"]
    assert (store_state.facts.layer_count, store_state.facts.stored_dtype) == (2, "bfloat16")
    assert set(store_state.paths) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert store_state.done_bytes == store_state.total_bytes
    mirror.asked.clear()
    phases.clear()
    assert fill(url, tmp_path / "cache", dtype="bfloat16", on_progress=watch).phase == "Ready"
    assert mirror.asked == []
    assert "Converting" not in phases
    fill(url, tmp_path / "cache", dtype="float32", on_progress=watch)
    assert "Converting" in phases


def test_a_gguf_from_the_hub_is_named_in_the_source(hub: StandIn, tmp_path: Path) -> None:
    data = gguf_model(tmp_path / "tiny.gguf")
    hub.add("org/ggufs", "a" * 40, {"tiny.gguf": data, "other.gguf": b"GGUF", "README.md": b"#"})
    store_state = fill("hf://org/ggufs/tiny.gguf", tmp_path / "cache")
    assert store_state.phase == "Ready", store_state.error
    assert set(hub.sent) == {"tiny.gguf"}
    assert store_state.facts.stored_dtype == "float32"


def test_local_files_are_served_in_place(tmp_path: Path) -> None:
    model = tmp_path / "volumes/claim/models/tiny"
    model.mkdir(parents=True)
    for name, data in repository().items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(data)
    by_path = fill(model.as_uri(), tmp_path / "cache")
    by_claim = fill("pvc://claim/models/tiny", tmp_path / "cache", volumes_dir=tmp_path / "volumes")
    for store_state in (by_path, by_claim):
        assert store_state.phase == "Ready", store_state.error
        assert set(store_state.paths) == {"config.json", "tokenizer.json", "model.safetensors"}
        assert store_state.paths["model.safetensors"] == model / "model.safetensors"
    assert by_path.facts.revision == by_claim.facts.revision
    assert by_path.facts.layer_count == LAYERS
    (model / "model.safetensors").write_bytes(repository(seed=5)["model.safetensors"])
    assert fill(model.as_uri(), tmp_path / "cache").facts.revision != by_path.facts.revision


def test_a_local_gguf_is_converted_into_the_cache(tmp_path: Path) -> None:
    gguf_model(tmp_path / "tiny.gguf")
    store_state = fill((tmp_path / "tiny.gguf").as_uri(), tmp_path / "cache", dtype="float16")
    assert store_state.phase == "Ready", store_state.error
    served = store_state.paths["model.safetensors"].parent
    assert served.parent == tmp_path / "cache/converted"
    assert SafetensorsDirectory(served).info("model.norm.weight").dtype == "float16"


SOURCES = [
    ("file://relative/path", "source 'file://relative/path' is not of the form file:///absolute/path"),
    ("pvc://claim/../other", "source 'pvc://claim/../other' is not of the form pvc://claim/path"),
    ("hf://just-a-name", "source 'hf://just-a-name' is not of the form hf://owner/name or hf://owner/name/FILE.gguf"),
    ("http://mirror.example/x", "source 'http://mirror.example/x' is not https://; nothing is sent to it in the clear"),
    (
        "https://user:secret@mirror.example/x",
        "source 'mirror.example/x' is not a plain https:// address; leave out queries, fragments and passwords",
    ),
    ("s3://bucket/x", "source 's3://bucket/x': schemes are hf://, pvc://, https:// and file://"),
]


@pytest.mark.parametrize(("url", "message"), SOURCES)
def test_a_wrong_source_is_refused_by_its_form(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        open_source(url, volumes_dir=tmp_path)
    assert (caught.value.reason, str(caught.value)) == ("UnsupportedSource", message)


def test_a_token_goes_with_the_hub_only(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a token is for hf:// only; remove tokenSecretRef"):
        open_source("https://mirror.example/x", token_file=tmp_path / "token")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist; correct spec.model.source"),
        (lambda path: path.write_text("x"), "a single file must be a .gguf"),
        (lambda path: path.mkdir(), "there is no model.safetensors and no model.safetensors.index.json"),
    ],
)
def test_a_wrong_path_is_refused_with_its_remedy(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "thing")
    store_state = fill((tmp_path / "thing").as_uri(), tmp_path / "cache")
    assert store_state.phase == "Failed"
    assert message in str(store_state.error)
