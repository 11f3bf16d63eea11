# ruff: noqa: E501 (a table's row is read as one line)
"""Wrong requests to /v1/messages: each an error in Anthropic's form that names the field, and nothing is begun."""

from __future__ import annotations

import httpx

HI = {"role": "user", "content": "Hi"}
NOW = {"name": "now", "input_schema": {"type": "object"}}
CALL = {"type": "tool_use", "id": "a", "name": "now", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "noon"}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def of(*messages):
    return {"messages": [HI, *messages]}


# (what is wrong, changes to a good body, how the message begins)
WRONG = [
    ("no max_tokens", {"max_tokens": None}, "Missing required parameter: 'max_tokens'."),
    ("max_tokens 0", {"max_tokens": 0}, "'max_tokens' must be greater than or equal to 1, got 0."),
    ("more than the context", {"max_tokens": 5000}, "This model's maximum context length is 4096 tokens. However, you requested 50"),
    ("no messages", {"messages": None}, "Missing required parameter: 'messages'."),
    ("empty messages", {"messages": []}, "'messages' holds 0 entries, expected 1 to 4096."),
    ("a message a string", {"messages": ["x"]}, "'messages[0]' is a JSON string, expected a message object."),
    ("a system's message", of({"role": "system", "content": "x"}), "'messages[1].role' must be user or assistant, got 'system'."),
    ("no content", {"messages": [{"role": "user"}]}, "Missing required parameter: 'messages[0].content'."),
    ("no blocks", {"messages": [user()]}, "'messages[0].content' holds 0 entries, expected 1 to 4096."),
    ("an image", {"messages": [user({"type": "image", "source": {}})]}, "'messages[0].content[0].type' is 'image', which is not supported by this server here: send text or tool_result."),
    ("a user's call", {"messages": [user(CALL)]}, "'messages[0].content[0].type' is 'tool_use', which is not supported"),
    ("text a number", {"messages": [user({"type": "text", "text": 3})]}, "'messages[0].content[0].text' is a JSON number, expected a string."),
    ("an unknown field of a block", {"messages": [user({"type": "text", "text": "x", "txt": 1})]}, "Unknown parameter: 'messages[0].content[0].txt'. Did you mean 'text'?"),
    ("an answer that is begun", of({"role": "assistant", "content": "The answer is ("}), "'messages[1].role' is 'assistant': an answer whose beginning is given is not supported"),
    ("a result without a call", of(user(RESULT)), "'messages[1].content[0].tool_use_id' is 'a', which is no call"),
    ("a result behind text", of(assistant(CALL), user({"type": "text", "text": "x"}, RESULT)), "'messages[2].content[1]' stands behind text: 'tool_result' blocks come first"),
    ("a call without a result", of(assistant(CALL), HI), "'messages[1]' calls tools whose results are missing: send a user's message that begins with 'tool_result' blocks for 'a'"),
    ("two calls of an id", of(assistant(CALL, CALL), user(RESULT)), "'messages[1]' has two calls with the id 'a': ids must differ."),
    ("input a string", of(assistant(CALL | {"input": "{}"}), user(RESULT)), "'messages[1].content[0].input' is a JSON string, expected an object."),
    ("thinking that is redacted", of(assistant({"type": "redacted_thinking", "data": "x"}), HI), "'messages[1].content[0].type' is 'redacted_thinking', which is not supported"),
    ("an image as a result", of(assistant(CALL), user(RESULT | {"content": [{"type": "image"}]})), "'messages[2].content[0].content[0].type' is 'image', which is not supported"),
    ("too many blocks", {"messages": [user(*[{"type": "text", "text": "x"}] * 4097)]}, "'messages' holds 4097 content parts in all, at most 4096 are accepted."),
    ("system a number", {"system": 3}, "'system' is a JSON number, expected a string or a list of text blocks."),
    ("temperature", {"temperature": 1.5}, "'temperature' must be less than or equal to 1, got 1.5."),
    ("top_k", {"top_k": -1}, "'top_k' must be greater than or equal to 0, got -1."),
    ("a stop that is empty", {"stop_sequences": ["x", ""]}, "'stop_sequences[1]' has 0 characters, expected 1 to 512."),
    ("stop a string", {"stop_sequences": "x"}, "'stop_sequences' is a JSON string, expected a list of strings."),
    ("a server's tool", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "Tools of type 'web_search_20250305' are not supported by this server, only 'custom'."),
    ("a tool without a schema", {"tools": [{"name": "now"}]}, "Missing required parameter: 'tools[0].input_schema'."),
    ("a tool's schema", {"tools": [NOW | {"input_schema": {"type": "array"}}]}, "'tools[0].input_schema.type' must be 'object'"),
    ("a tool's name", {"tools": [NOW | {"name": "a b"}]}, "'tools[0].name' must be 1 to 64 letters"),
    ("tools of one name", {"tools": [NOW, NOW]}, "'tools' has two functions named 'now'"),
    ("a choice as OpenAI's", {"tools": [NOW], "tool_choice": "auto"}, "'tool_choice' is a JSON string, expected an object."),
    ("no such choice", {"tools": [NOW], "tool_choice": {"type": "required"}}, "'tool_choice.type' must be auto, any, tool or none, got 'required'."),
    ("a choice that is none", {"tools": [NOW], "tool_choice": {"type": "tool", "name": "later"}}, "'tool_choice.name' is 'later', which is none of the 'tools'."),
    ("a choice without tools", {"tool_choice": {"type": "any"}}, "'tool_choice' asks for a call"),
    ("a small budget", {"thinking": {"type": "enabled", "budget_tokens": 10}}, "'thinking.budget_tokens' is 10, expected at least 1024."),
    ("a budget above max_tokens", {"max_tokens": 1024, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "'max_tokens' is 1024, expected more than 'thinking.budget_tokens'"),
    ("thinking of a model that does not", {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "'thinking.type' 'enabled' is not supported by this model"),
    ("no such effort", {"output_config": {"effort": "huge"}}, "'output_config.effort' must be low, medium, high, xhigh or max, got 'huge'."),
    ("effort of a model that does not think", {"output_config": {"effort": "low"}}, "'output_config.effort' 'low' is not known"),
    ("a schema that is none", {"output_config": {"format": {"type": "json_schema", "schema": {"type": "text"}}}}, "'output_config.format.schema.type': "),
    ("a container", {"container": "x"}, "The parameter 'container' is not supported by this server: leave it out."),
    ("servers of tools", {"mcp_servers": [{}]}, "The parameter 'mcp_servers' is not supported by this server: leave it out, or send []."),
    ("OpenAI's stop", {"stop": ["x"]}, "Unknown parameter: 'stop'."),
]  # fmt: skip


def error_of(response) -> tuple[str, str]:
    body = response.json()
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return body["error"]["type"], body["error"]["message"]


def test_every_wrong_value_is_a_400_that_names_it(hermes_server):
    with httpx.Client(base_url=hermes_server.url) as client:
        for name, changes, message in WRONG:
            body = {"model": "tiny", "max_tokens": 64, "messages": [HI], **changes}
            response = client.post("/v1/messages", json=body)
            assert response.status_code == 400, (name, response.text)
            kind, told = error_of(response)
            assert (kind, told.startswith(message)) == ("invalid_request_error", True), (name, told)
    assert hermes_server.engine.submissions == []


def test_other_errors_have_the_same_form(hermes_server):
    good = {"model": "tiny", "max_tokens": 64, "messages": [HI]}
    with httpx.Client(base_url=f"{hermes_server.url}/v1/") as client:
        for status, kind, response in (
            (404, "not_found_error", client.post("messages", json=good | {"model": "claude"})),
            (404, "not_found_error", client.post("messages/batches", json=good)),
            (405, "invalid_request_error", client.get("messages")),
            (
                415,
                "invalid_request_error",
                client.post("messages", content="x", headers={"content-type": "text/plain"}),
            ),
            (400, "invalid_request_error", client.post("messages", content="{")),
            (413, "request_too_large", client.post("messages", content=b'{"a": "' + b"x" * (2 << 20) + b'"}')),
            (400, "invalid_request_error", client.post("messages", json=good, headers={"anthropic-version": "new"})),
            (400, "invalid_request_error", client.post("messages/count_tokens", json=good)),
            (400, "invalid_request_error", client.post("messages/count_tokens", json={"model": "tiny"})),
        ):
            assert (response.status_code, error_of(response)[0]) == (status, kind), response.text
        assert "'max_tokens'" in error_of(client.post("messages/count_tokens", json=good))[1]


def test_a_full_queue_is_a_rate_limit(serve):
    served = serve("x", max_sequences=1)
    body = {"model": "tiny", "max_tokens": 8, "messages": [HI]}
    with served.bridge.reserve(1):
        response = httpx.post(f"{served.url}/v1/messages", json=body)
    assert (response.status_code, error_of(response)[0]) == (429, "rate_limit_error")
    assert response.headers["retry-after"]
