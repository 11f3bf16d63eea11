"""What stands around the two routes: health, version, tokens, request ids, web pages of other origins."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from dataclasses import replace

import httpx
import openai
import pytest
from languagepipes_node import metrics
from languagepipes_node.end_model.openai import auth
from languagepipes_node.end_model.openai.auth import ApiKeys
from support.waiting import eventually

HI = [{"role": "user", "content": "hi"}]
PAGE = {"origin": "https://chat.example"}


def test_health_is_200_while_requests_are_taken(serve):
    served = serve("x")
    assert (httpx.get(served.url + "/health").status_code, httpx.get(served.url + "/health").content) == (200, b"")
    served.engine.status = replace(served.engine.status, ring_ready=False)  # a stage is awaited
    assert httpx.get(served.url + "/health").status_code == 200
    served.engine.status = replace(served.engine.status, accepting=False)
    assert httpx.get(served.url + "/health").status_code == 503
    served.engine.status = replace(served.engine.status, accepting=True)
    served.bridge.stop_admission("the server is shutting down")
    assert httpx.get(served.url + "/health").status_code == 503


def test_version_is_the_packages(serve):
    answer = httpx.get(serve("x").url + "/version")
    assert answer.json() == {"version": importlib.metadata.version("languagepipes")}


def test_health_and_version_ask_for_no_key_and_tokens_do(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    (tmp_path / "alice").write_text("sk-alice")
    served = serve("x", api_keys=ApiKeys(tmp_path))
    assert [httpx.get(served.url + path).status_code for path in ("/health", "/version")] == [200, 200]
    bodies = {"/tokenize": {"prompt": "x"}, "/detokenize": {"tokens": [5]}}
    key = {"authorization": "Bearer sk-alice"}
    for path, body in bodies.items():
        assert httpx.post(served.url + path, json=body).status_code == 401
        assert httpx.post(served.url + path, json=body, headers=key).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/v1/responses/resp_1", "/v1/responses/{id}"),
        ("DELETE", "/v1/responses/resp_1", "/v1/responses/{id}"),
        ("GET", "/v1/responses/resp_1/input_items", "/v1/responses/{id}/input_items"),
        ("POST", "/v1/responses/resp_1/cancel", "/v1/responses/{id}/cancel"),
        ("POST", "/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("GET", "/v1/responses/resp_1/made_up", "other"),
        ("GET", "/v1/responses/", "other"),
        ("GET", "/v1/made_up", "other"),
    ],
)
def test_requests_are_counted_by_route(serve, caplog, method, path, route):
    caplog.set_level(logging.INFO, "languagepipes_node.end_model.openai.app")
    served = serve("x")
    counted = sum(_counted(route))
    httpx.request(method, served.url + path)
    eventually(lambda: caplog.records)  # a line is written once the answer is out
    assert sum(_counted(route)) == counted + 1
    assert caplog.messages[-1].startswith(f"{route} id=")


def _counted(route):
    (family,) = metrics.REQUESTS.collect()
    return [
        sample.value for sample in family.samples if sample.name.endswith("_total") and sample.labels["route"] == route
    ]


def test_a_text_is_told_in_tokens_and_back(serve):
    served = serve("x")
    text = "The quick brown fox <|im_end|> 🎉"
    answer = httpx.post(served.url + "/tokenize", json={"model": "tiny", "prompt": text, "return_token_strs": True})
    tokens = list(served.codec.encode(text))
    assert answer.json() == {
        "count": len(tokens),
        "max_model_len": 512,
        "tokens": tokens,
        "token_strs": served.codec.spellings(tokens),
    }
    assert "<|im_end|>" in answer.json()["token_strs"]
    back = httpx.post(served.url + "/detokenize", json={"model": "tiny", "tokens": tokens})
    assert back.json() == {"prompt": text}
    without = httpx.post(served.url + "/tokenize", json={"prompt": text}).json()
    assert (without["tokens"], without["token_strs"]) == (tokens, None)


def test_many_tokens_are_told_whole(serve):
    served = serve("x", max_context_length=200_000)
    text = "The quick brown fox " * 8_000
    answer = httpx.post(served.url + "/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == list(served.codec.encode(text))
    assert answer["token_strs"] == served.codec.spellings(answer["tokens"])
    assert answer["count"] == len(answer["tokens"]) > 20_000


def test_a_chat_is_told_in_the_tokens_that_an_answer_is_computed_from(serve):
    served = serve("x")
    served.client.chat.completions.create(model="tiny", messages=HI)
    answer = httpx.post(served.url + "/tokenize", json={"model": "tiny", "messages": HI})
    assert answer.json()["tokens"] == list(served.engine.submissions[0].prompt)
    assert answer.json()["count"] == len(served.engine.submissions[0].prompt)


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/tokenize", {}, "prompt", "Missing required parameter: 'prompt' or 'messages'."),
        ("/tokenize", {"prompt": "a", "messages": HI}, "messages", "'prompt' and 'messages' are both there: send one"),
        ("/tokenize", {"prompt": 3}, "prompt", "'prompt' must be a valid string, got 3."),
        ("/tokenize", {"messages": []}, "messages", "'messages' holds 0 messages, expected 1 to 4096."),
        ("/tokenize", {"messages": HI, "add_generation_prompt": False}, "add_generation_prompt", "The parameter"),
        ("/tokenize", {"messages": HI, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a", "'chat_template"),
        (
            "/tokenize",
            {"prompts": "a", "prompt": "a"},
            "prompts",
            "Unknown parameter: 'prompts'. Did you mean 'prompt'?",
        ),
        ("/detokenize", {}, "tokens", "Missing required parameter: 'tokens'."),
        ("/detokenize", {"tokens": [401]}, "tokens", "'tokens' holds token id 401, expected 0 to 400."),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "'tokens[0]' must be greater than or equal to 0, got -1."),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]", "'tokens[1]' is a JSON string, expected an integer."),
        ("/detokenize", {"tokens": [1, True]}, "tokens[1]", "'tokens[1]' is a JSON boolean, expected an integer."),
        ("/detokenize", {"tokens": [1] * 513}, "tokens", "This model's maximum context length is 512 tokens, and '"),
        ("/tokenize", {"prompt": "x" * 900_000}, "prompt", "This model's maximum context length is 512 tokens"),
        ("/tokenize", {"messages": [{"role": "user", "content": "x" * 900_000}]}, "messages", "This model's max"),
        ("/detokenize", {"tokens": "a"}, "tokens", "'tokens' must be a valid list, got a JSON string."),
    ],
)
def test_what_is_wrong_with_tokens_is_a_400_that_names_it(serve, path, body, param, message):
    answer = httpx.post(serve("x").url + path, json={"model": "tiny", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(message)


def test_each_answer_has_a_request_id_that_the_log_has_too(serve, caplog):
    caplog.set_level(logging.INFO, "languagepipes_node.end_model.openai.app")
    served = serve("x")
    good = {"model": "tiny", "messages": HI}
    path = "/v1/chat/completions"
    seen = [
        httpx.post(served.url + path, json=good),
        httpx.post(served.url + path, json={**good, "stream": True}),
        httpx.post(served.url + path, json={**good, "temperature": 9}),
        httpx.get(served.url + "/nothing"),
    ]
    ids = [answer.headers["x-request-id"] for answer in seen]
    assert len(set(ids)) == 4
    assert all(re.fullmatch("req_[0-9a-f]{32}", number) for number in ids)
    # A line is written once the answer is out.
    eventually(lambda: len(caplog.records) >= 4)
    lines = [record.getMessage() for record in caplog.records]
    for number, start, status in zip(ids, [path, path, path, "other"], [200, 200, 400, 404], strict=True):
        (line,) = [line for line in lines if number in line]
        assert re.fullmatch(rf"{start} id={number} status={status} outcome=\w+ seconds=\d+\.\d{{3}}", line)
    assert served.client.chat.completions.with_raw_response.create(**good).headers["x-request-id"].startswith("req_")
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.chat.completions.create(**good, temperature=9)
    assert str(refused.value.request_id).startswith("req_")


def test_a_clients_own_request_id_is_kept_if_it_is_plain(serve):
    served = serve("x")
    for given in ("trace-1.2:3/4", "A" * 128):
        assert httpx.get(served.url + "/version", headers={"x-request-id": given}).headers["x-request-id"] == given
    for given in ("two words", "A" * 129, "<script>", ""):
        answer = httpx.get(served.url + "/version", headers={"x-request-id": given})
        assert answer.headers["x-request-id"].startswith("req_")


def test_pages_of_other_origins_may_not_read_answers_by_default(serve):
    served = serve("x")
    answer = httpx.get(served.url + "/v1/models", headers=PAGE)
    assert "access-control-allow-origin" not in answer.headers
    asked = httpx.options(served.url + "/v1/models", headers={**PAGE, "access-control-request-method": "GET"})
    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize(("origins", "allowed"), [(["https://chat.example"], "https://chat.example"), (["*"], "*")])
def test_pages_of_the_origins_that_are_named_may_call(serve, tmp_path, monkeypatch, origins, allowed):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    (tmp_path / "alice").write_text("sk-alice")
    served = serve("x", api_keys=ApiKeys(tmp_path), cors_allowed_origins=origins)
    path = served.url + "/v1/chat/completions"
    asking = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-os",
    }
    asked = httpx.options(path, headers={**PAGE, **asking})  # a browser sends no key with this
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == allowed
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "authorization" in asked.headers["access-control-allow-headers"]
    key = {"authorization": "Bearer sk-alice"}
    for stream in (False, True):
        answer = httpx.post(path, json={"model": "tiny", "messages": HI, "stream": stream}, headers={**PAGE, **key})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, allowed)
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-request-id", "request-id"} <= set(exposed)
    refused = httpx.post(path, json={}, headers=PAGE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, allowed)


def test_a_page_of_an_origin_that_is_not_named_may_not(serve):
    served = serve("x", cors_allowed_origins=["https://chat.example"])
    other = {"origin": "https://other.example"}
    assert "access-control-allow-origin" not in httpx.get(served.url + "/v1/models", headers=other).headers
    asked = httpx.options(served.url + "/v1/models", headers={**other, "access-control-request-method": "GET"})
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers


def test_embeddings_are_refused_with_what_to_use_instead(serve):
    served = serve("x")
    with pytest.raises(openai.NotFoundError) as refused:
        served.client.embeddings.create(model="tiny", input="hello")
    assert refused.value.code == "unknown_url"
    assert "text-embeddings-inference" in str(refused.value)


def test_hints_in_messages_change_nothing(serve):
    served = serve("x")
    hinted = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "hi", "name": "bob", "cache_control": {"type": "ephemeral"}},
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    for messages in (hinted, plain):
        served.client.chat.completions.create(model="tiny", messages=messages)
    first, second = served.engine.submissions
    assert first.prompt == second.prompt
