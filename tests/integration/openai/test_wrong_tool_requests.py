# ruff: noqa: E501 (a table's row is read as one line)
"""What a client sees of wrong tools, choices among them and histories, of a model that knows tools. Nothing reaches the
engine."""

from __future__ import annotations

import httpx
from support.refusals import refusal
from support.tool_model import NOW, WEATHER

HI = {"role": "user", "content": "hi"}
FUNCTION = {"name": "now", "arguments": "{}"}


def called(*ids, **changes):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id, "type": "function", "function": FUNCTION | changes} for id in ids],
    }


def result(id, **changes):
    return {"role": "tool", "tool_call_id": id, "content": "12:00"} | changes


def function(**fields):
    return {"tools": [{"type": "function", "function": {"name": "f"} | fields}]}


def allowed(*names, mode="auto", **more):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools} | more}}


WRONG = [
    ("tools an object", {"tools": {}}, "tools", "invalid_type", "'tools' is a JSON object, expected a list of tools."),
    ("tool a string", {"tools": ["now"]}, "tools[0]", "invalid_type", "'tools[0]' is a JSON string, expected an object."),
    ("tool without type", {"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "missing_required_parameter", "Missing required parameter: 'tools[0].type'."),
    ("custom tool", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_parameter", "Tools of type 'custom' are not supported by this server, only 'function'."),
    ("other tool", {"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value", "'tools[0].type' must be function, got 'web_search'."),
    ("tool without function", {"tools": [NOW, {"type": "function"}]}, "tools[1].function", "missing_required_parameter", "Missing required parameter: 'tools[1].function'."),
    ("function without name", {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "missing_required_parameter", "Missing required parameter: 'tools[0].function.name'."),
    ("function's name with a dot", function(name="a.b"), "tools[0].function.name", "invalid_value", "'tools[0].function.name' must be 1 to 64 letters, digits, underscores and dashes, got 'a.b'."),
    ("function's name too long", function(name="a" * 65), "tools[0].function.name", "invalid_value", "'tools[0].function.name' must be 1 to 64 letters"),
    ("function's name a number", function(name=3), "tools[0].function.name", "invalid_type", "'tools[0].function.name' is a JSON number, expected a string."),
    ("description a list", function(description=["a"]), "tools[0].function.description", "invalid_type", "'tools[0].function.description' is a JSON array, expected a string."),
    ("parameters a string", function(parameters="{}"), "tools[0].function.parameters", "invalid_type", "'tools[0].function.parameters' is a JSON string, expected a JSON Schema object."),
    ("parameters of an array", function(parameters={"type": "array"}), "tools[0].function.parameters.type", "invalid_value", "'tools[0].function.parameters.type' must be 'object', got \"array\""),
    ("strict a string", function(strict="yes"), "tools[0].function.strict", "invalid_type", "'tools[0].function.strict' is a JSON string, expected a boolean."),
    ("function with more", function(parameter={}), "tools[0].function.parameter", "unknown_parameter", "Unknown parameter: 'tools[0].function.parameter'. Did you mean 'parameters'?"),
    ("tool with more", {"tools": [NOW | {"strict": True}]}, "tools[0].strict", "unknown_parameter", "Unknown parameter: 'tools[0].strict'."),
    ("two of a name", {"tools": [NOW, WEATHER, NOW]}, "tools[2].function.name", "invalid_value", "'tools' has two functions named 'now': names must differ."),
    ("too many tools", {"tools": [NOW] * 129}, "tools", "invalid_value", "'tools' holds 129 tools, at most 128 are accepted."),
    ("choice unknown", {"tool_choice": "any"}, "tool_choice", "invalid_value", "'tool_choice' must be one of none, auto, required, a function or allowed tools, got 'any'."),
    ("choice a number", {"tool_choice": 1}, "tool_choice", "invalid_type", "'tool_choice' is a JSON number, expected a string or an object."),
    ("choice of no type", {"tool_choice": {"function": {"name": "now"}}}, "tool_choice.type", "missing_required_parameter", "Missing required parameter: 'tool_choice.type'."),
    ("choice of a tool that is not there", {"tool_choice": {"type": "function", "function": {"name": "later"}}}, "tool_choice.function.name", "invalid_value", "'tool_choice.function.name' is 'later', which is none of the 'tools'."),
    ("choice without tools", {"tools": [], "tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice", "invalid_value", "'tool_choice' asks for a call of a tool, and there are no 'tools': send some."),
    ("allowed none", allowed(), "tool_choice.allowed_tools.tools", "invalid_value", "'tool_choice.allowed_tools.tools' holds 0 functions, expected 1 to 128."),
    ("allowed mode", allowed("now", mode="none"), "tool_choice.allowed_tools.mode", "invalid_value", "'tool_choice.allowed_tools.mode' must be auto or required, got 'none'."),
    ("allowed what is not there", allowed("now", "later"), "tool_choice.allowed_tools.tools[1].function.name", "invalid_value", "'tool_choice.allowed_tools.tools[1].function.name' is 'later', which is none of the 'tools'."),
    ("parallel a string", {"parallel_tool_calls": "no"}, "parallel_tool_calls", "invalid_type", "'parallel_tool_calls' must be a valid boolean, got a JSON string."),
    ("a result without a call", {"messages": [HI, result("a")]}, "messages[1].tool_call_id", "invalid_value", "'messages[1].tool_call_id' is 'a', which is no call of the assistant's message just before it"),
    ("a result of another call", {"messages": [HI, called("a"), result("b")]}, "messages[2].tool_call_id", "invalid_value", "'messages[2].tool_call_id' is 'b', which is no call"),
    ("a result without an id", {"messages": [HI, called("a"), {"role": "tool", "content": "x"}]}, "messages[2].tool_call_id", "missing_required_parameter", "Missing required parameter: 'messages[2].tool_call_id'."),
    ("a result without content", {"messages": [HI, called("a"), result("a", content=None)]}, "messages[2].content", "missing_required_parameter", "Missing required parameter: 'messages[2].content'."),
    ("a result twice", {"messages": [HI, called("a"), result("a"), result("a")]}, "messages[3].tool_call_id", "invalid_value", "'messages[3].tool_call_id' is 'a', which has a result already"),
    ("a result too late", {"messages": [HI, called("a"), HI, result("a")]}, "messages[1].tool_calls", "invalid_value", "'messages[1].tool_calls' calls tools whose results are missing: send a message of role 'tool' for 'a' right behind it."),
    ("a call without a result", {"messages": [HI, called("a", "b"), result("a")]}, "messages[1].tool_calls", "invalid_value", "'messages[1].tool_calls' calls tools whose results are missing"),
    ("two calls of an id", {"messages": [HI, called("a", "a"), result("a")]}, "messages[1].tool_calls[1].id", "invalid_value", "'messages[1].tool_calls' has two calls with the id 'a': ids must differ."),
    ("calls an object", {"messages": [HI, {"role": "assistant", "tool_calls": {}}]}, "messages[1].tool_calls", "invalid_type", "'messages[1].tool_calls' is a JSON object, expected a list of tool calls."),
    ("no calls and no content", {"messages": [HI, {"role": "assistant", "tool_calls": []}]}, "messages[1].content", "missing_required_parameter", "Missing required parameter: 'messages[1].content'."),
    ("a call without an id", {"messages": [HI, {"role": "assistant", "tool_calls": [{"type": "function", "function": FUNCTION}]}]}, "messages[1].tool_calls[0].id", "missing_required_parameter", "Missing required parameter: 'messages[1].tool_calls[0].id'."),
    ("a call's id empty", {"messages": [HI, called(""), result("")]}, "messages[1].tool_calls[0].id", "invalid_value", "'messages[1].tool_calls[0].id' has 0 characters, expected 1 to 256."),
    ("arguments an object", {"messages": [HI, called("a", arguments={}), result("a")]}, "messages[1].tool_calls[0].function.arguments", "invalid_type", "'messages[1].tool_calls[0].function.arguments' is a JSON object, expected a string that holds a JSON object."),
    ("arguments a list", {"messages": [HI, called("a", arguments="[1]"), result("a")]}, "messages[1].tool_calls[0].function.arguments", "invalid_value", "'messages[1].tool_calls[0].function.arguments' must be the text of a JSON object."),
    ("arguments cut off", {"messages": [HI, called("a", arguments='{"a": '), result("a")]}, "messages[1].tool_calls[0].function.arguments", "invalid_value", "'messages[1].tool_calls[0].function.arguments' must be the text of a JSON object."),
    ("a result with calls", {"messages": [HI, called("a"), result("a", tool_calls=[1])]}, "messages[2].tool_calls", "unsupported_parameter", "'tool_calls' of a message is not supported by this server."),
    ("a user's tool call id", {"messages": [HI | {"tool_call_id": "a"}]}, "messages[0].tool_call_id", "unsupported_parameter", "'tool_call_id' of a message is not supported by this server."),
    ("thinking a list", {"messages": [HI, {"role": "assistant", "content": "a", "reasoning": ["b"]}]}, "messages[1].reasoning", "invalid_type", "'messages[1].reasoning' is a JSON array, expected a string."),
    ("effort unknown", {"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value", "'reasoning_effort' must be 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'."),
    ("effort of a model that does not think", {"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter", "'reasoning_effort' 'high' is not known to the model's chat template: send one of none."),
]  # fmt: skip


def test_every_wrong_value_is_a_400_that_names_it(hermes_server):
    with httpx.Client(base_url=hermes_server.url) as client:
        for name, changes, param, code, message in WRONG:
            body = {"model": "tiny", "messages": [HI], "tools": [NOW, WEATHER], **changes}
            response = client.post("/v1/chat/completions", json=body)
            error = refusal(response, name)
            assert (error["param"], error["code"]) == (param, code), (name, error)
            assert error["message"].startswith(message), (name, error)
    assert hermes_server.engine.submissions == []


def test_schemas_as_deep_as_json_allows_do_not_end_in_a_fault(hermes_server):
    deep = {"type": "object"}
    for _ in range(400):
        deep = {"type": "object", "properties": {"a": deep}}
    body = {
        "model": "tiny",
        "messages": [HI],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}],
    }
    response = httpx.post(f"{hermes_server.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("chat_template_error", "context_length_exceeded")
