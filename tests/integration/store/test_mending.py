"""What goes wrong with a store's surroundings in a pod: it says so, stays up, and goes on once it is mended."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from languagepipes_api.member_settings import MemberSettings
from languagepipes_node.net.tls import TlsFiles
from languagepipes_node.store import main as store_role
from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.weights.remote import StoreClient
from support.filled_store import fill
from support.llama_files import COMMIT, repository
from support.stand_in_hub import TOKEN, StandIn
from support.store_members import END_MODEL, TlsFor, store_settings
from support.store_process import ask, store_process

URL = "hf://org/tiny"


@pytest.fixture
def settings(hub: StandIn, tls_for: TlsFor, tmp_path: Path) -> MemberSettings:
    hub.add("org/tiny", COMMIT, repository())
    return store_settings(tls_for, URL, cache_dir=tmp_path / "cache")


def write_model(directory: Path) -> None:
    directory.mkdir()
    for name, content in repository().items():
        if "/" not in name:
            (directory / name).write_bytes(content)


def failure_told(settings: MemberSettings, tls_for: TlsFor) -> str:
    """The reason in /v1/progress once the store failed, and that /v1/facts says the same."""
    with StoreClient(settings.store_listen or "", tls_for(END_MODEL), patience_seconds=30) as client:
        with pytest.raises(WeightsError) as caught:
            client.facts()
        error = client.progress()["error"]
        assert error == {"reason": caught.value.reason, "message": str(caught.value)}
        return f"{error['reason']}: {error['message']}"


def test_a_wrong_token_is_named_and_a_right_one_is_taken_when_it_comes(
    hub: StandIn, settings: MemberSettings, tls_for: TlsFor, tmp_path: Path
) -> None:
    hub.add("org/tiny", COMMIT, repository(), gated=True)
    token = tmp_path / "token"
    token.write_text("hf_wrong")
    with pytest.MonkeyPatch.context() as patch:  # the stand-in speaks no TLS; nothing else asks for it
        patch.setattr("languagepipes_node.store.sources.http.require_tls", lambda *_, **__: None)
        store_state = fill(URL, tmp_path / "cache", token_file=token)
        assert (store_state.phase, store_state.error.reason) == ("Failed", "TokenRefused")
        assert str(store_state.error).endswith("put one that works into the Secret of tokenSecretRef")
        assert "hf_wrong" not in str(store_state.error)
        seen = store_role._possible_causes(settings.model_copy(update={"token_file": token}), URL)
        token.write_text(TOKEN)
        assert store_role._possible_causes(settings.model_copy(update={"token_file": token}), URL) != seen
        assert fill(URL, tmp_path / "cache", token_file=token).phase == "Ready"


def test_a_path_that_a_claim_does_not_hold_is_named_and_served_once_it_is_there(
    settings: MemberSettings, tls_for: TlsFor, tmp_path: Path
) -> None:
    volumes = tmp_path / "volumes"
    (volumes / "models").mkdir(parents=True)
    wrong = settings.model_copy(update={"source": "pvc://models/tiny", "volumes_dir": volumes})
    with store_process(wrong) as process:
        told = failure_told(wrong, tls_for)
        assert told.startswith("FileNotFoundAtSource: pvc://models/tiny:")
        assert told.endswith("correct spec.model.source")
        assert ask(wrong.telemetry_listen, "/healthz")[0] == 200
        write_model(tmp_path / "new")
        (tmp_path / "new").rename(volumes / "models" / "tiny")
        with StoreClient(wrong.store_listen or "", tls_for(END_MODEL), patience_seconds=30) as client:
            while client.progress()["phase"] != "Ready":
                assert process.poll() is None
            client.facts()


def test_a_cache_that_is_no_directory_is_named_and_the_store_stays_up(
    settings: MemberSettings, tls_for: TlsFor, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("")
    with store_process(settings) as process:
        assert failure_told(settings, tls_for).startswith(f"CacheUnusable: cache directory {tmp_path / 'cache'}")
        assert ask(settings.telemetry_listen, "/readyz")[0] == 503
        assert process.poll() is None


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, "NoSpace"), (errno.EROFS, "CacheUnusable"), (errno.EIO, "CacheUnusable")]
)
def test_a_disk_that_fails_at_the_first_write_is_the_caches_fault(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    hub.add("org/tiny", COMMIT, repository())

    def fail(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("languagepipes_node.store.cache.write_atomically", fail)
    store_state = fill(URL, tmp_path / "cache")
    assert (store_state.phase, store_state.error.reason) == ("Failed", reason)


def test_a_file_that_may_not_be_read_is_the_sources_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model")

    def deny(path: Path, begin: int, end: int) -> bytes:  # root may read all, so that modes alone show nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("languagepipes_node.store.sources.local.read_file_range", deny)
    store_state = fill(f"file://{tmp_path}/model", tmp_path / "cache")
    assert (store_state.phase, store_state.error.reason) == ("Failed", "SourceUnreadable")
    assert "let user" in str(store_state.error)


def test_status_tells_the_bundle_and_metrics_the_end_of_the_certificate(
    settings: MemberSettings,
) -> None:
    with store_process(settings):
        status = json.loads(ask(settings.telemetry_listen, "/status")[1])
        report = TlsFiles(settings.tls_dir).report()
        assert status["bundle"] == report.bundle
        assert status["leaf_not_after"]
        metrics = ask(settings.telemetry_listen, "/metrics")[1]
        shown = next(line for line in metrics.splitlines() if line.startswith("languagepipes_certificate_expiry"))
        assert float(shown.split()[1]) == report.leaf_not_after


def test_a_store_that_cannot_start_leaves_its_termination_message(settings: MemberSettings, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.write_text("")
    for change, words in (
        ({"tls_dir": tmp_path / "none"}, "CertificatesUnusable: TLS files in"),
        ({"store_listen": settings.telemetry_listen}, "CannotListen: "),
        ({"source": None}, "InvalidSettings: LANGUAGEPIPES_SOURCE must be set"),
    ):
        with store_process(settings.model_copy(update={**change, "termination_log": log})) as process:
            assert process.wait(timeout=30) == 1
            assert log.read_text().startswith(words)
    with store_process(settings.model_copy(update={"source": None, "termination_log": tmp_path / "none"})) as process:
        assert process.wait(timeout=30) == 1
    assert not (tmp_path / "none").exists()
