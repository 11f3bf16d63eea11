"""A Hub whose certificate an authority of its own signed: fetched from only where that authority is named."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.certificates import Authority
from languagepipes_api.member_settings import MemberSettings
from languagepipes_node.store.sources import http
from languagepipes_node.weights.remote import StoreClient
from support.filled_store import fill
from support.llama_files import COMMIT, LAYERS, repository
from support.stand_in_hub import TOKEN, StandIn, stand_in_hub
from support.store_members import END_MODEL, TlsFor, store_settings
from support.store_process import store_process


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def hub(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A mirror with a gated model, and another host for its large files, as that authority signs them."""
    leaf = authority.issue("hub", common_name="hub", hosts=("127.0.0.1",))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(leaf.certificate, leaf.key)
    with stand_in_hub(tls=tls) as hub:
        hub.add("org/tiny", COMMIT, repository(), gated=True)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(authority.folder / "hf"))
        yield hub


@pytest.fixture
def settings(hub: StandIn, tls_for: TlsFor, tmp_path: Path) -> MemberSettings:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return store_settings(tls_for, "hf://org/tiny", cache_dir=tmp_path / "cache", token_file=token)


def test_metadata_and_files_come_from_a_hub_whose_authority_is_named(
    hub: StandIn, authority: Authority, settings: MemberSettings, tls_for: TlsFor
) -> None:
    trusting = settings.model_copy(update={"hub_ca_file": authority.certificate})
    with store_process(trusting), StoreClient(settings.store_listen or "", tls_for(END_MODEL)) as client:
        assert client.facts().layer_count == LAYERS
        while client.progress()["phase"] != "Ready":
            time.sleep(0.02)
    sent = {path: {name.lower(): value for name, value in headers.items()} for _, path, headers in hub.requests}
    assert sent[f"/org--tiny/{COMMIT}/model.safetensors"].get("authorization") is None
    asked = sent["/api/models/org/tiny/revision/main"]
    assert asked["authorization"] == f"Bearer {TOKEN}"
    # What huggingface_hub adds to each of its requests, whoever made its client.
    assert asked["x-amzn-trace-id"]


def test_the_hub_of_an_unknown_authority_is_told_with_the_remedy(settings: MemberSettings, tmp_path: Path) -> None:
    store_state = fill("hf://org/tiny", tmp_path / "cache", token_file=settings.token_file, attempts=0)
    assert (store_state.phase, store_state.error.reason) == ("Resolving", "SourceUnreachable")
    assert "its certificate is of an authority that is not trusted (unable to get local issuer" in str(
        store_state.error
    )
    assert "hub.caBundle" in str(store_state.error)


def test_a_command_of_a_machine_trusts_what_its_environment_names(
    hub: StandIn, authority: Authority, settings: MemberSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "languagepipes_node", "facts", "--source", "hf://org/tiny"]
    command += ["--token-file", str(settings.token_file)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_the_systems_authorities_stay_trusted(authority: Authority) -> None:
    before = ssl.create_default_context().cert_store_stats()["x509_ca"]
    assert before > 0
    assert http.trusting(authority.certificate).cert_store_stats()["x509_ca"] == before + 1


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nMIIB"])
def test_a_file_without_authorities_ends_the_store_with_the_variable_and_the_remedy(
    settings: MemberSettings, tmp_path: Path, content: str | None
) -> None:
    file, log = tmp_path / "ca.crt", tmp_path / "termination-log"
    log.write_text("")
    if content is not None:
        file.write_text(content)
    with store_process(settings.model_copy(update={"hub_ca_file": file, "termination_log": log})) as process:
        assert process.wait(timeout=30) == 1
    said = log.read_text()
    assert said.startswith(
        f"InvalidSettings: LANGUAGEPIPES_HUB_CA_FILE: {file} holds no certificates that can be read ("
    )
    assert said.endswith("give it the PEM text of the Hub's authority (-----BEGIN CERTIFICATE-----…)")
