"""hf:// against a stand-in hub: what is fetched, pinned, verified, resumed and kept, and what each failure says."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from languagepipes_node.store import inspect
from languagepipes_node.store.sources import open_source
from languagepipes_node.weights.errors import WeightsError
from support.filled_store import fill
from support.llama_files import COMMIT, LATER_COMMIT, LAYERS, fetched_names, repository
from support.stand_in_hub import TOKEN, StandIn

URL = "hf://org/tiny"


def contents(store_state) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in store_state.paths.items()}


@pytest.mark.parametrize("shards", [1, 3])
def test_only_the_models_own_files_are_fetched_and_all_arrive_whole(hub: StandIn, tmp_path: Path, shards: int) -> None:
    files = repository(shards=shards)
    hub.add("org/tiny", COMMIT, files)
    store_state = fill(URL, tmp_path)
    assert store_state.phase == "Ready", store_state.error
    assert store_state.facts.revision == COMMIT
    assert store_state.facts.layer_count == LAYERS
    assert contents(store_state) == {name: files[name] for name in fetched_names(files)}
    assert store_state.done_bytes == store_state.total_bytes == store_state.facts.download_bytes
    assert set(hub.sent) == fetched_names(files)


def test_shards_are_fetched_side_by_side(hub: StandIn, tmp_path: Path) -> None:
    files = repository(shards=3)
    hub.add("org/tiny", COMMIT, files)
    barrier = threading.Barrier(3)
    hub.together = {name: barrier for name in files if name.startswith("model-")}

    store_state = fill(URL, tmp_path)

    assert store_state.phase == "Ready", store_state.error
    assert contents(store_state) == {name: files[name] for name in fetched_names(files)}
    assert store_state.done_bytes == store_state.total_bytes


def test_a_shard_that_is_broken_for_good_ends_the_others_too(hub: StandIn, tmp_path: Path) -> None:
    files = repository(shards=3)
    hub.add("org/tiny", COMMIT, files)
    hub.wrong.add("model-00002-of-00003.safetensors")

    store_state = fill(URL, tmp_path)

    assert store_state.phase == "Failed"
    assert store_state.error.reason == "HashMismatch"
    assert "model-00002-of-00003.safetensors" in str(store_state.error)
    assert "model-00002-of-00003.safetensors" not in store_state.paths


def test_facts_are_known_before_the_weights_are_downloaded(hub: StandIn, tmp_path: Path) -> None:
    big = repository(extra={"vocab.json": b"{}"})
    hub.add("org/tiny", COMMIT, big)
    seen: list[tuple[str, bool, int]] = []
    fill(
        URL,
        tmp_path,
        on_progress=lambda store_state: seen.append(
            (store_state.phase, store_state.facts is not None, store_state.done_bytes)
        ),
    )
    assert next(known for phase, known, done in seen if phase == "Downloading")
    assert next(done for phase, known, done in seen if known) == 0


def test_a_restart_fetches_nothing_and_needs_no_hub(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", COMMIT, repository())
    fill(URL, tmp_path)
    hub.forget()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    store_state = fill(URL, tmp_path)
    assert store_state.phase == "Ready", store_state.error
    assert store_state.done_bytes == store_state.total_bytes
    assert hub.requests == []


def test_a_revision_is_pinned_until_another_is_asked_for(hub: StandIn, tmp_path: Path) -> None:
    hub.add("org/tiny", COMMIT, repository(seed=0))
    assert fill(URL, tmp_path).facts.revision == COMMIT
    hub.add("org/tiny", LATER_COMMIT, repository(seed=1))
    hub.add("org/tiny", LATER_COMMIT, repository(seed=1), branch="v2")
    assert fill(URL, tmp_path).facts.revision == COMMIT
    assert fill(URL, tmp_path, revision="v2").facts.revision == LATER_COMMIT


def test_files_that_two_commits_share_are_fetched_once(hub: StandIn, tmp_path: Path) -> None:
    hub.add("org/tiny", COMMIT, repository(), branch="v1")
    hub.add("org/tiny", LATER_COMMIT, repository(extra={"generation_config.json": b"{}"}), branch="v2")
    fill(URL, tmp_path, revision="v1")
    hub.forget()
    assert fill(URL, tmp_path, revision="v2").phase == "Ready"
    assert hub.sent == {"generation_config.json": 2}


def test_a_connection_cut_half_way_goes_on_from_there(hub: StandIn, tmp_path: Path) -> None:
    files = repository(shards=2)
    hub.add("org/tiny", COMMIT, files)
    shard = "model-00001-of-00002.safetensors"
    half = len(files[shard]) // 2
    errors: set[str] = set()
    # The header's ranges are short enough to stay under this.
    hub.cut_after[shard] = half + 1

    def watch(store_state) -> None:
        if store_state.error is not None:
            errors.add(f"{store_state.phase}/{store_state.error.reason}")

    store_state = fill(URL, tmp_path, on_progress=watch)
    assert store_state.phase == "Ready", store_state.error
    assert store_state.error is None
    assert errors <= {"Resolving/SourceUnreachable", "Downloading/SourceUnreachable"}
    assert errors
    assert contents(store_state)[shard] == files[shard]


def test_a_store_killed_half_way_asks_only_for_the_rest(hub: StandIn, tmp_path: Path) -> None:
    files = repository()
    size = len(files["model.safetensors"])
    hub.add("org/tiny", COMMIT, files)
    facts_read = fill(URL, tmp_path / "other")  # how much the headers take
    assert facts_read.phase == "Ready"
    header_bytes = hub.sent["model.safetensors"] - size
    hub.forget()
    hub.cut_after["model.safetensors"] = max(size // 2, 65536 + 1)
    if hub.cut_after["model.safetensors"] >= size:
        pytest.fail("the model is too small for this test")
    assert fill(URL, tmp_path / "cache", attempts=0).phase != "Ready"
    partial = next((tmp_path / "cache/partial").iterdir()).stat().st_size
    assert 0 < partial < size
    hub.forget()
    store_state = fill(URL, tmp_path / "cache")
    assert store_state.phase == "Ready", store_state.error
    assert hub.sent["model.safetensors"] <= size - partial + header_bytes
    assert contents(store_state)["model.safetensors"] == files["model.safetensors"]


def test_a_hub_without_ranges_starts_over_and_still_ends_right(hub: StandIn, tmp_path: Path) -> None:
    files = repository()
    hub.add("org/tiny", COMMIT, files)
    hub.no_ranges = True
    hub.cut_after["model.safetensors"] = 70_000
    store_state = fill(URL, tmp_path)
    assert store_state.phase == "Ready", store_state.error
    assert store_state.done_bytes == store_state.total_bytes
    assert contents(store_state)["model.safetensors"] == files["model.safetensors"]


def test_a_passing_failure_is_waited_out_and_shown_meanwhile(hub: StandIn, tmp_path: Path) -> None:
    hub.add("org/tiny", COMMIT, repository())
    hub.failing = 3
    shown: list[str] = []
    store_state = fill(URL, tmp_path, on_progress=lambda store_state: shown.append(str(store_state.error)))
    assert store_state.phase == "Ready"
    assert f"{URL} at 'main': the server answers 503; trying again" in shown


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_wrong_hash_is_tried_once_more_and_then_refused(hub: StandIn, tmp_path: Path, name: str) -> None:
    files = repository()
    hub.add("org/tiny", COMMIT, files)
    hub.wrong.add(name)
    store_state = fill(URL, tmp_path)
    assert (store_state.phase, store_state.error.reason) == ("Failed", "HashMismatch")
    assert str(store_state.error).startswith(f"{name}: its bytes have the hash ")
    assert str(store_state.error).endswith("the source or a proxy before it is broken")
    assert name not in store_state.paths
    assert hub.sent[name] >= 2 * len(files[name])
    assert not list((tmp_path / "partial").iterdir())

    hub.wrong.clear()
    assert fill(URL, tmp_path).phase == "Ready"


def test_a_gated_model_is_had_with_a_token_which_only_the_hub_sees(hub: StandIn, tmp_path: Path) -> None:
    hub.add("org/tiny", COMMIT, repository(), gated=True)
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    assert fill(URL, tmp_path / "cache", token_file=token_file).phase == "Ready"
    asked = [
        (path.startswith("/org--tiny/"), headers.get("authorization", headers.get("Authorization")))
        for _, path, headers in hub.requests
    ]
    assert {token for is_cdn, token in asked if is_cdn} == {None}
    assert {token for is_cdn, token in asked if not is_cdn} == {f"Bearer {TOKEN}"}


FAILURES = [
    (
        "hf://org/tiny",
        None,
        "GatedRepository",
        "hf://org/tiny at 'main' is gated: accept its terms on the Hub and name a token of that account in "
        "tokenSecretRef",
    ),
    (
        "hf://org/none",
        None,
        "RepositoryNotFound",
        "hf://org/none at 'main': refused with 401; it does not exist, or it is private and the token may not read it",
    ),
    (
        "hf://org/open",
        "v9",
        "RevisionNotFound",
        "hf://org/open at 'v9': no such branch, tag or commit; correct spec.model.revision",
    ),
    (
        "hf://org/pickles",
        None,
        "UnsupportedFile",
        "pytorch_model.bin: PyTorch pickles can run code when they are loaded and are never read; publish the weights "
        "as .safetensors (safetensors' convert script does it) and name that repository",
    ),
    (
        "hf://org/strange",
        None,
        "UnsupportedArchitecture",
        "model_type: 'mamba' is not a supported family",
    ),
    ("hf://org/bare", None, "FileNotFoundAtSource", "there is no config.json; a model needs it beside its weights"),
    (
        "hf://org/ggufs",
        None,
        "UnsupportedFile",
        "hf://org/ggufs holds 2 GGUF files; name one in spec.model.source: hf://org/ggufs/a.gguf",
    ),
    (
        "hf://org/short",
        None,
        "BrokenFile",
        "model.safetensors: tensor 'model.norm.weight' ends at byte",
    ),
]


@pytest.mark.parametrize(("url", "revision", "reason", "message"), FAILURES, ids=[row[2] for row in FAILURES])
def test_a_failure_says_reason_and_remedy_and_is_final(
    hub: StandIn, tmp_path: Path, url: str, revision: str | None, reason: str, message: str
) -> None:
    files = repository()
    hub.add("org/tiny", COMMIT, files, gated=True)
    hub.add("org/open", COMMIT, files)
    hub.add("org/pickles", COMMIT, {"config.json": b"{}", "pytorch_model.bin": b"\x80\x02."})
    hub.add("org/strange", COMMIT, {**files, "config.json": b'{"model_type": "mamba"}'})
    hub.add("org/bare", COMMIT, {"model.safetensors": files["model.safetensors"]})
    hub.add("org/ggufs", COMMIT, {"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    hub.add("org/short", COMMIT, {**files, "model.safetensors": files["model.safetensors"][:-40]})
    store_state = fill(url, tmp_path, revision=revision)
    assert (store_state.phase, store_state.error.reason) == ("Failed", reason)
    assert str(store_state.error).startswith(message)


def test_a_hub_that_cannot_be_reached_is_tried_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    store_state = fill(URL, tmp_path, attempts=3)
    assert (store_state.phase, store_state.error.reason) == ("Resolving", "SourceUnreachable")
    assert str(store_state.error).startswith("hf://org/tiny at http://127.0.0.1:9: ConnectError")


def test_a_token_is_never_sent_in_the_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(WeightsError) as caught:
        open_source(URL, token_file=tmp_path / "token")
    assert caught.value.reason == "UnsupportedSource"
    assert TOKEN not in str(caught.value)
    assert "nothing is sent to it in the clear" in str(caught.value)


def test_too_little_space_is_said_before_the_first_byte(hub: StandIn, tmp_path: Path) -> None:
    files = repository()
    hub.add("org/tiny", COMMIT, files)
    from languagepipes_node.store import cache

    original, cache.SPARE_BYTES = cache.SPARE_BYTES, 1 << 60
    try:
        store_state = fill(URL, tmp_path)
    finally:
        cache.SPARE_BYTES = original
    assert (store_state.phase, store_state.error.reason) == ("Failed", "NoSpace")
    assert "more are needed" in str(store_state.error)
    assert str(store_state.error).endswith("enlarge spec.cache.size")
    assert not list((tmp_path / "blobs").iterdir())


def test_the_facts_command_prints_facts_or_a_reason(
    hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = repository(shards=2)
    hub.add("org/tiny", COMMIT, files)
    assert inspect.main(["--source", URL, "--cache-dir", str(tmp_path)]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert (facts["revision"], len(facts["layers"]), facts["tied_embeddings"]) == (COMMIT, LAYERS, True)
    assert inspect.main(["--source", "hf://org/none"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "RepositoryNotFound"
    assert inspect.main(["--source", "ftp://x/y"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == {
        "reason": "UnsupportedSource",
        "message": "source 'ftp://x/y': schemes are hf://, pvc://, https:// and file://",
    }
