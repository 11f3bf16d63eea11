"""`/openapi.json` describes the API as it is: schemathesis holds the real server against it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import jsonschema
import pytest
from languagepipes_node.end_model.openai import auth
from languagepipes_node.end_model.openai.auth import ApiKeys
from support import chat_templates
from support.tool_model import codec_of

# Every check of schemathesis but positive_data_acceptance: that a prompt, its answers and `max_tokens` fit the context
# together is beyond JSON Schema.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,missing_required_header,ignored_auth,unsupported_method,"
    "allow_header_conformance"
)


@pytest.fixture
def keyed(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    (tmp_path / "alice").write_text("sk-alice")
    served = serve("Hello wörld", api_keys=ApiKeys(tmp_path), max_sequences=64)
    served.key = "sk-alice"
    return served


def document(served) -> dict:
    headers = {"authorization": f"Bearer {served.key}"} if served.key else {}
    return httpx.get(f"{served.url}/openapi.json", headers=headers).raise_for_status().json()


@pytest.mark.slow
def test_no_request_that_schemathesis_makes_is_answered_otherwise_than_described(keyed, tmp_path):
    program = Path(sys.executable).with_name("st")
    arguments = ["--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--generation-deterministic"]
    bounds = ["--max-examples", "5", "--max-time", "50", "--continue-on-failure", "--no-color"]
    key = ["--header", f"Authorization: Bearer {keyed.key}"]
    run = subprocess.run(
        [program, "run", f"{keyed.url}/openapi.json", *key, *arguments, *bounds],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: 17" in run.stdout
    keyed.wait_until_idle()


def test_every_operation_has_a_title_an_id_and_its_errors(keyed):
    described = document(keyed)
    assert described["openapi"].startswith("3.1")
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
    assert {name: (operation["operationId"], operation["summary"]) for name, operation in operations.items()} == {
        "POST /v1/chat/completions": ("create_chat_completion", "Create Chat Completion"),
        "POST /v1/completions": ("create_completion", "Create Completion"),
        "POST /v1/responses": ("create_response", "Create Response"),
        "GET /v1/responses/{response_id}": ("retrieve_response", "Retrieve Response"),
        "DELETE /v1/responses/{response_id}": ("delete_response", "Delete Response"),
        "POST /v1/responses/{response_id}/cancel": ("cancel_response", "Cancel Response"),
        "GET /v1/responses/{response_id}/input_items": ("list_input_items", "List Input Items"),
        "POST /v1/messages": ("create_message", "Create Message"),
        "POST /v1/messages/count_tokens": ("count_message_tokens", "Count Message Tokens"),
        "GET /v1/models": ("list_models", "List Models"),
        "GET /v1/models/{model}": ("retrieve_model", "Retrieve Model"),
        "GET /healthz": ("healthz", "Healthz"),
        "GET /readyz": ("readyz", "Readyz"),
        "POST /tokenize": ("tokenize", "Tokenize"),
        "POST /detokenize": ("detokenize", "Detokenize"),
        "GET /health": ("health", "Health"),
        "GET /version": ("version", "Version"),
    }
    messages = "/v1/messages"
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", messages):
        operation = operations[f"POST {path}"]
        assert set(operation["responses"]) == {
            "200", "400", "401", "404", "408", "413", "415", "429", "500", "503"
        }  # fmt: skip
        for status, response in operation["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                form = "MessagesErrorResponse" if path == messages else "ErrorResponse"
                assert schema == {"$ref": f"#/components/schemas/{form}"}
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        headers = [{"ApiKeyHeader": []}] if path == messages else []
        assert operation["security"] == [{"ApiKey": []}, *headers]
    assert described["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"


def test_what_is_refused_is_not_described_as_accepted(keyed):
    schemas = document(keyed)["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]["properties"]
    assert chat["model"]["const"] == "tiny"
    assert chat["tools"]["enum"] == [[], None]
    assert chat["priority"]["enum"] == [0, None]
    dependent = schemas["CompletionRequest"]["dependentSchemas"]["prompt_logprobs"]
    assert not jsonschema.Draft202012Validator(dependent).is_valid({"prompt_logprobs": 1, "stream": True})
    assert jsonschema.Draft202012Validator(dependent).is_valid({"prompt_logprobs": 1, "stream": False})
    assert chat["tool_choice"]["enum"] == ["none", "auto", None]
    assert chat["reasoning_effort"]["enum"] == ["none", None]
    assert chat["n"]["anyOf"][0]["maximum"] == 64
    for name in ("ResponseRequest", "MessagesRequest", "CountTokensRequest"):
        assert schemas[name]["properties"]["model"]["const"] == "tiny"
        assert schemas[name]["properties"]["tools"]["enum"] == [[], None]
    assert schemas["ReasoningOptions"]["properties"]["effort"]["enum"] == ["none", None]
    assert {"ResponseEvent", "MessageStreamEvent"} < set(schemas)
    roles = [schemas[name]["properties"]["role"] for name in ("Message", "AssistantTurn", "ToolMessage")]
    assert roles[0]["enum"] == ["system", "developer", "user"]
    assert [role["const"] for role in roles[1:]] == ["assistant", "tool"]
    assert not {"HTTPValidationError", "AskedConstraint", "Constraint"} & set(schemas)


@pytest.mark.parametrize("name", ["ChatCompletionRequest", "CompletionRequest"])
def test_structured_output_is_described_as_it_is_accepted(keyed, name):
    described = document(keyed)
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
    )
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "tiny", **({"messages": messages} if name.startswith("Chat") else {"prompt": "hi"})}
    path = "/v1/chat/completions" if name.startswith("Chat") else "/v1/completions"
    schema = {"name": "a", "schema": {"type": "object"}}
    tags = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}
    for asked, right in [
        ({"response_format": {"type": "text"}}, True),
        ({"response_format": {"type": "json_object", "json_schema": None}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {**schema, "strict": None}}}, True),
        ({"response_format": {"type": "structural_tag", **tags}}, True),
        ({"response_format": {"type": "json_schema"}}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {**schema, "name": "a b"}}}, False),
        ({"response_format": {"type": "grammar"}}, False),
        ({"response_format": {"type": "json_object", "schema": {}}}, False),
        ({"structured_outputs": {"json": '{"type": "string"}'}}, True),
        ({"structured_outputs": {"regex": "a", "choice": None}}, True),
        ({"structured_outputs": {"choice": ["a"]}}, True),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, True),
        ({"structured_outputs": {"json_object": True, "disable_any_whitespace": False}}, True),
        ({"structured_outputs": {"structural_tag": tags}}, True),
        ({"structured_outputs": {}}, False),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, False),
        ({"structured_outputs": {"choice": []}}, False),
        ({"structured_outputs": {"regex": ""}}, False),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, False),
        ({"guided_choice": ["a"], "guided_json": None}, True),
        ({"guided_regex": 5}, False),
    ]:
        answer = httpx.post(
            f"{keyed.url}{path}", json={**body, **asked}, headers={"authorization": f"Bearer {keyed.key}"}
        )
        assert validator.is_valid({**body, **asked}) == right, asked
        assert (answer.status_code == 200) == right, (asked, answer.text)


def test_every_schema_is_one_that_something_refers_to(serve):
    described = document(serve("x", codec=codec_of(chat_templates.HERMES)))
    text = json.dumps(described)
    schemas = described["components"]["schemas"]
    assert [name for name in schemas if f'#/components/schemas/{name}"' not in text] == []
    assert set(re.findall('#/components/schemas/([^"]+)"', text)) <= set(schemas)
    assert [name for name in schemas if "__" in name] == []  # two of one name


def test_a_server_without_keys_describes_none(serve):
    described = document(serve("x"))
    assert "securitySchemes" not in described["components"]
    assert all(
        "401" not in operation["responses"] for path in described["paths"].values() for operation in path.values()
    )
