# ruff: noqa: E501 (a table's row is read as one line)
"""Wrong requests to /v1/responses: each a 400 that names the field, the value and the remedy, and nothing is begun."""

from __future__ import annotations

import httpx
from support import chat_templates
from support.refusals import refusal
from support.scripted_engine import saying
from support.tool_model import codec_of

HI = {"role": "user", "content": "Hi"}
NOW = {"type": "function", "name": "now", "parameters": {}}
VALUE, TYPE, MISSING, UNSUPPORTED, UNKNOWN = (
    "invalid_value", "invalid_type", "missing_required_parameter", "unsupported_parameter", "unknown_parameter"
)  # fmt: skip


def call(id="a", **changes):
    return {"type": "function_call", "call_id": id, "name": "now", "arguments": "{}"} | changes


def result(id="a", **changes):
    return {"type": "function_call_output", "call_id": id, "output": "noon"} | changes


def of(*items):
    return {"input": [HI, *items]}


# (what is wrong, changes to a good body, param, code, how the message begins)
WRONG = [
    ("no input", {"input": None}, "input", MISSING, "Missing required parameter: 'input'."),
    ("empty input", {"input": ""}, "input", VALUE, "'input' is empty."),
    ("no items", {"input": []}, "input", VALUE, "'input' holds 0 entries, expected 1 to 2048."),
    ("input a number", {"input": 3}, "input", TYPE, "'input' is a JSON number, expected a string or a list of items."),
    ("an item a string", {"input": ["x"]}, "input[0]", TYPE, "'input[0]' is a JSON string, expected an item object."),
    ("an item of no kind", of({"type": "web_search_call"}), "input[1].type", UNSUPPORTED, "Items of type 'web_search_call' are not supported"),
    ("a reference without an id", of({"type": "item_reference"}), "input[1].id", MISSING, "Missing required parameter: 'input[1].id'."),
    ("items of one id", {"input": [HI | {"id": "msg_1"}, HI | {"id": "msg_1"}]}, "input[1].id", VALUE, "'input' has two items with the id 'msg_1': ids must differ."),
    ("no role", {"input": [{"content": "x"}]}, "input[0].role", MISSING, "Missing required parameter: 'input[0].role'."),
    ("no such role", {"input": [HI | {"role": "tool"}]}, "input[0].role", VALUE, "'input[0].role' must be user, assistant, system or developer, got 'tool'."),
    ("no content", {"input": [{"role": "user"}]}, "input[0].content", MISSING, "Missing required parameter: 'input[0].content'."),
    ("an image", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type", UNSUPPORTED, "Content parts of type 'input_image' are not supported"),
    ("a part without text", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", MISSING, "Missing"),
    ("an unknown field of an item", {"input": [HI | {"contents": 1}]}, "input[0].contents", UNKNOWN, "Unknown parameter: 'input[0].contents'. Did you mean 'content'?"),
    ("a user's phase", {"input": [HI | {"phase": "commentary"}]}, "input[0].phase", VALUE, "'input[0].phase' is only allowed with role 'assistant'."),
    ("arguments an object", of(call(arguments={}), result()), "input[1].arguments", TYPE, "'input[1].arguments' is a JSON object, expected a string."),
    ("arguments cut off", of(call(arguments='{"a'), result()), "input[1].arguments", VALUE, "'input[1].arguments' must be the text of a JSON object."),
    ("a result without a call", of(result("b")), "input[1].call_id", VALUE, "'input[1].call_id' is 'b', which is no call"),
    ("a call without a result", of(call(), HI), "input[1]", VALUE, "'input[1]' calls tools whose results are missing: send an item of type 'function_call_output' for 'a'"),
    ("two calls of an id", of(call(), call(), result()), "input[1]", VALUE, "'input[1]' has two calls with the id 'a'"),
    ("thinking that is encrypted", of({"type": "reasoning", "summary": [], "encrypted_content": "x"}), "input[1].encrypted_content", UNSUPPORTED, "The parameter 'input[1].encrypted_content' is not supported"),
    ("too many parts", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 2049}] * 2}, "input", VALUE, "'input' holds 4098 content parts in all, at most 4096 are accepted."),
    ("too many calls", of(*(call(str(n)) for n in range(129))), "input[1]", VALUE, "'input[1]' begins a turn of 129 calls, at most 128 are accepted."),
    ("in the background", {"background": True}, "background", UNSUPPORTED, "The parameter 'background' is not supported by this server: leave it out, or send false."),
    ("truncation", {"truncation": "middle"}, "truncation", VALUE, "'truncation' must be 'auto' or 'disabled'"),
    ("usage in events", {"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage", UNKNOWN, "Unknown parameter: 'stream_options.include_usage'."),
    ("a priority", {"priority": 1}, "priority", UNSUPPORTED, "'priority' is not taken by this server"),
    ("a conversation", {"conversation": "conv_1"}, "conversation", UNSUPPORTED, "The parameter 'conversation' is not supported"),
    ("a prompt by id", {"prompt": {"id": "x"}}, "prompt", UNSUPPORTED, "The parameter 'prompt' is not supported"),
    ("encrypted thinking", {"include": ["reasoning.encrypted_content"]}, "include[0]", UNSUPPORTED, "'include[0]' is 'reasoning.encrypted_content', which is not supported"),
    ("a summary", {"reasoning": {"summary": "concise"}}, "reasoning.summary", UNSUPPORTED, "The parameter 'reasoning.summary' is not supported by this server: leave it out, or send \"auto\"."),
    ("no such effort", {"reasoning": {"effort": "huge"}}, "reasoning.effort", VALUE, "'reasoning.effort' must be none, minimal, low, medium, high or xhigh, got 'huge'."),
    ("effort of a model that does not think", {"reasoning": {"effort": "high"}}, "reasoning.effort", UNSUPPORTED, "'reasoning.effort' 'high' is not known"),
    ("a built-in tool", {"tools": [{"type": "web_search"}]}, "tools[0].type", UNSUPPORTED, "Tools of type 'web_search' are not supported by this server, only 'function'."),
    ("a nested tool", {"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools[0].name", MISSING, "Missing required parameter: 'tools[0].name'."),
    ("a tool's name", {"tools": [NOW | {"name": "a b"}]}, "tools[0].name", VALUE, "'tools[0].name' must be 1 to 64 letters"),
    ("parameters a list", {"tools": [NOW | {"parameters": []}]}, "tools[0].parameters", TYPE, "'tools[0].parameters' is a JSON array"),
    ("a choice without tools", {"tool_choice": "required"}, "tool_choice", VALUE, "'tool_choice' asks for a call"),
    ("a choice that is none", {"tools": [NOW], "tool_choice": {"type": "function", "name": "later"}}, "tool_choice.name", VALUE, "'tool_choice.name' is 'later', which is none of the 'tools'."),
    ("allowed what is not there", {"tools": [NOW], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "later"}]}}, "tool_choice.tools[0].name", VALUE, "'tool_choice.tools[0].name' is 'later'"),
    ("a built-in choice", {"tools": [NOW], "tool_choice": {"type": "file_search"}}, "tool_choice.type", UNSUPPORTED, "A 'tool_choice' of type 'file_search' is not supported"),
    ("no such format", {"text": {"format": {"type": "xml"}}}, "text.format.type", VALUE, "'text.format.type' must be text, json_object or json_schema, got 'xml'."),
    ("a schema without a name", {"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", MISSING, "Missing required parameter: 'text.format.name'."),
    ("a schema that is none", {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "text"}}}}, "text.format.schema.type", VALUE, "'text.format.schema.type': "),
    ("tokens", {"max_output_tokens": 0}, "max_output_tokens", VALUE, "'max_output_tokens' must be greater than or equal to 1, got 0."),
    ("more than the context", {"max_output_tokens": 5000}, "max_output_tokens", "context_length_exceeded", "This model's maximum context length is 4096 tokens."),
    ("top_logprobs", {"top_logprobs": 21}, "top_logprobs", VALUE, "'top_logprobs' must be less than or equal to 20, got 21."),
    ("metadata a number", {"metadata": {"a": 1}}, "metadata.a", TYPE, "'metadata.a' is a JSON number, expected a string."),
    ("chat's messages", {"messages": [HI]}, "messages", UNKNOWN, "Unknown parameter: 'messages'."),
]  # fmt: skip


def test_every_wrong_value_is_a_400_that_names_it(hermes_server):
    with httpx.Client(base_url=hermes_server.url) as client:
        for name, changes, param, code, message in WRONG:
            response = client.post("/v1/responses", json={"model": "tiny", "input": [HI], **changes})
            error = refusal(response, name)
            assert (error["param"], error["code"]) == (param, code), (name, error)
            assert error["message"].startswith(message), (name, error)
    assert hermes_server.engine.submissions == []


def test_a_call_of_an_earlier_response_must_be_answered(serve):
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    codec = codec_of(chat_templates.HERMES)
    served = serve(saying(codec, text), codec=codec, max_context_length=4096)
    first = served.client.responses.create(model="tiny", input="x", tools=[NOW])
    body = {"model": "tiny", "input": "And?", "tools": [NOW], "previous_response_id": first.id}
    error = httpx.post(f"{served.url}/v1/responses", json=body)
    assert error.status_code == 400
    assert error.json()["error"]["param"] == "previous_response_id"
    assert "calls tools whose results are missing" in error.json()["error"]["message"]


def test_wrong_urls_and_queries_are_named(hermes_server):
    made = hermes_server.client.responses.create(model="tiny", input="x").id
    with httpx.Client(base_url=f"{hermes_server.url}/v1/") as client:
        for method, url, status, param, code in (
            ("GET", "/resp_1", 404, "response_id", "response_not_found"),
            ("DELETE", "/resp_1", 404, "response_id", "response_not_found"),
            ("POST", "/resp_1/cancel", 404, "response_id", "response_not_found"),
            ("GET", "/resp_1/input_items", 404, "response_id", "response_not_found"),
            ("POST", f"/{made}/cancel", 400, "response_id", VALUE),
            ("GET", f"/{made}?stream=true", 400, "stream", VALUE),
            ("GET", f"/{made}?include=reasoning.encrypted_content", 400, "include", UNSUPPORTED),
            ("GET", f"/{made}?starting_after=3", 400, "starting_after", UNSUPPORTED),
            ("GET", f"/{made}?fields=id", 400, "fields", UNKNOWN),
            ("GET", f"/{made}/input_items?limit=0", 400, "limit", VALUE),
            ("GET", f"/{made}/input_items?limit=101", 400, "limit", VALUE),
            ("GET", f"/{made}/input_items?order=up", 400, "order", VALUE),
            ("GET", f"/{made}/input_items?after=msg_1", 400, "after", VALUE),
            ("POST", f"/{made}", 405, None, "method_not_allowed"),
        ):
            response = client.request(method, f"responses{url}")
            error = response.json()["error"]
            assert (response.status_code, error["param"], error["code"]) == (status, param, code), (url, error)
        refused = client.post("responses/compact", json={"model": "tiny", "input": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_url")
        assert "compact is not served: send what is to be kept" in refused.json()["error"]["message"]
        wrong = {"model": "gpt-5", "input": "x"}
        assert client.post("responses", json=wrong).json()["error"]["code"] == "model_not_found"
        assert client.put(f"responses/{made}").headers["allow"] == "GET, HEAD, DELETE"
