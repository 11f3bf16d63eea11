"""The role `store` as the process that a pod runs."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from languagepipes_api.member_settings import MemberSettings
from languagepipes_node.weights.errors import StoreFailed
from languagepipes_node.weights.remote import StoreClient
from support.llama_files import COMMIT, LAYERS, repository
from support.stand_in_hub import StandIn
from support.store_members import END_MODEL, TlsFor, store_settings
from support.store_process import ask, store_process


@pytest.fixture
def settings(hub: StandIn, tls_for: TlsFor, tmp_path: Path) -> MemberSettings:
    hub.add("org/tiny", COMMIT, repository(shards=2))
    return store_settings(tls_for, "hf://org/tiny", cache_dir=tmp_path / "cache")


def test_the_store_serves_facts_files_status_and_metrics_and_stops_on_sigterm(
    settings: MemberSettings, tls_for: TlsFor
) -> None:
    with store_process(settings) as process:
        with StoreClient(settings.store_listen or "", tls_for(END_MODEL), patience_seconds=60) as client:
            assert client.facts().layer_count == LAYERS
            info = client.info("model.norm.weight")
            client.read_into("model.norm.weight", memoryview(bytearray(info.nbytes)))
            while client.progress()["phase"] != "Ready":
                time.sleep(0.02)
        assert ask(settings.telemetry_listen, "/readyz") == (200, "ok\n")
        status = json.loads(ask(settings.telemetry_listen, "/status")[1])
        assert (status["role"], status["state"], status["progress"]["error"]) == ("store", "ready", None)
        assert status["loaded_bytes"] == status["total_bytes"] == status["progress"]["total_bytes"]
        metrics = ask(settings.telemetry_listen, "/metrics")[1]
        assert "languagepipes_ring_ready" not in metrics
        assert f'store_served_bytes_total{{member="replica-0/end-model"}} {info.nbytes}.0' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_a_store_that_failed_stays_up_and_says_why(settings: MemberSettings, tls_for: TlsFor) -> None:
    wrong = settings.model_copy(update={"source": "hf://org/none"})
    with store_process(wrong) as process:
        with StoreClient(wrong.store_listen or "", tls_for(END_MODEL), patience_seconds=60) as client:
            with pytest.raises(StoreFailed) as caught:
                client.facts()
            assert caught.value.reason == "RepositoryNotFound"
        status, text = ask(wrong.telemetry_listen, "/readyz")
        assert (status, "hf://org/none at 'main'" in text) == (503, True)
        assert ask(wrong.telemetry_listen, "/healthz")[0] == 200
        assert process.poll() is None
