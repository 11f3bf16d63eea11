"""API keys from a directory, and the guard in front of the routes."""

from __future__ import annotations

import os

import httpx
import openai
import pytest
from languagepipes_node.end_model.openai import auth
from languagepipes_node.end_model.openai.auth import ApiKeys

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    (tmp_path / "alice").write_text("sk-alice\n")
    (tmp_path / "bob").write_text("sk-böb")
    return tmp_path


def test_without_a_directory_nobody_is_asked():
    assert ApiKeys(None).allows(b"")
    assert not ApiKeys(None).required


def test_each_file_is_a_key(keys):
    known = ApiKeys(keys)
    assert known.allows(b"sk-alice")
    assert known.allows("sk-böb".encode())
    for wrong in ("", "sk-", "sk-alic", "sk-alice ", "sk-alicee", "SK-ALICE", "alice", "sk-alicesk-böb"):
        assert not known.allows(wrong.encode())


def test_keys_come_and_go_with_their_files(keys):
    known = ApiKeys(keys)
    (keys / "carol").write_text("sk-carol")
    assert known.allows(b"sk-carol")
    (keys / "alice").write_text("sk-alice-2")
    assert known.allows(b"sk-alice-2")
    assert not known.allows(b"sk-alice")
    (keys / "bob").unlink()
    assert not known.allows("sk-böb".encode())


def test_a_mounted_secret_is_read_through_its_links_and_its_swap_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(f"sk-{version}")
    os.symlink("..1", tmp_path / "..data")
    os.symlink("..data/key", tmp_path / "key")
    known = ApiKeys(tmp_path)
    assert known.allows(b"sk-1")
    os.symlink("..2", tmp_path / "..next")
    os.replace(tmp_path / "..next", tmp_path / "..data")
    assert known.allows(b"sk-2")
    assert not known.allows(b"sk-1")


def test_a_directory_without_keys_or_that_is_lost_lets_nobody_in(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    assert not ApiKeys(tmp_path / "absent").allows(b"")
    (tmp_path / "empty").write_text(" \n")
    known = ApiKeys(tmp_path)
    assert not known.allows(b"")
    (tmp_path / "key").write_text("k" * 5000)
    assert not known.allows(b"k" * 5000)


def test_every_route_but_health_asks_for_a_key(serve, keys):
    served = serve("Hello", api_keys=ApiKeys(keys))
    for method, path in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("GET", "/v1/anything"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/v1/chat/completions"),
        ("GET", "//healthz"),
    ]:
        response = httpx.request(method, served.url + path)
        assert response.status_code == 401, path
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz"):
        assert httpx.get(served.url + path).status_code == 200


def test_a_key_must_be_the_one_bearer_token(serve, keys):
    served = serve("Hello", api_keys=ApiKeys(keys))
    for headers in (
        [("authorization", "sk-alice")],
        [("authorization", "Basic sk-alice")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer sk-wrong")],
        [("authorization", "Bearer sk-alice"), ("authorization", "Bearer sk-alice")],
        [("x-api-key", "sk-wrong")],
        [("x-api-key", "sk-alice"), ("x-api-key", "sk-alice")],
        [("authorization", "Bearer sk-wrong"), ("x-api-key", "sk-alice")],
    ):
        response = httpx.get(f"{served.url}/v1/models", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), headers
    assert httpx.get(f"{served.url}/v1/models", headers={"authorization": "bearer sk-alice"}).status_code == 200
    assert httpx.get(f"{served.url}/v1/models", headers={"authorization": "Bearer sk-böb".encode()}).status_code == 200


def test_the_client_library_is_let_in_or_told(serve, keys):
    served = serve("Hello", api_keys=ApiKeys(keys))
    served.key = "sk-alice"
    assert served.client.chat.completions.create(model="tiny", messages=HI).choices[0].message.content == "Hello"
    with pytest.raises(openai.AuthenticationError):
        served.client.with_options(api_key="sk-mallory").models.list()
