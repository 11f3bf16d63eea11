"""`/openapi.json` describes the API as it is: schemathesis holds the real server against it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from languagepipes_node.end_model.openai import auth
from languagepipes_node.end_model.openai.auth import ApiKeys

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
    assert "Tested: 6" in run.stdout
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
        "GET /v1/models": ("list_models", "List Models"),
        "GET /v1/models/{model}": ("retrieve_model", "Retrieve Model"),
        "GET /healthz": ("healthz", "Healthz"),
        "GET /readyz": ("readyz", "Readyz"),
    }
    for path in ("/v1/chat/completions", "/v1/completions"):
        operation = operations[f"POST {path}"]
        assert set(operation["responses"]) == {
            "200", "400", "401", "404", "408", "413", "415", "429", "500", "503"
        }  # fmt: skip
        for status, response in operation["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}
        assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        assert operation["security"] == [{"ApiKey": []}]
    assert described["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"


def test_what_is_refused_is_not_described_as_accepted(keyed):
    schemas = document(keyed)["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]["properties"]
    assert chat["model"]["const"] == "tiny"
    assert chat["tools"]["enum"] == [[], None]
    assert chat["reasoning_effort"]["enum"] == [None]
    assert chat["n"]["anyOf"][0]["maximum"] == 64
    assert schemas["Message"]["properties"]["role"]["enum"] == ["system", "developer", "user", "assistant"]
    assert "HTTPValidationError" not in schemas


def test_a_server_without_keys_describes_none(serve):
    described = document(serve("x"))
    assert "securitySchemes" not in described["components"]
    assert all(
        "401" not in operation["responses"] for path in described["paths"].values() for operation in path.values()
    )
