"""Python clients of others, each as its documentation uses it."""

from __future__ import annotations

CALL = {"name": "get_weather", "arguments": {"city": "Paris"}}
# Fields of the Open Responses specification that the client's models lack.
OPEN_RESPONSES = {"frequency_penalty", "presence_penalty", "store"}
FORECAST = "It is sunny in Paris, as the tool says."


def test_openai_chats_streams_and_parses(python, expected):
    answer = python("openai_chat.py")
    assert answer["text"] == answer["streamed"] == answer["helped"] == answer["helped_text"] == expected["text"]
    assert answer["usage"] == answer["streamed_usage"] == expected["tokens"]
    assert answer["finish_reason"] == "stop"
    assert answer["unknown_fields"] == []
    assert answer["parsed"].keys() == {"name", "age"}
    assert answer["models"] == ["demo"]


def test_openai_calls_tools_and_parses_their_arguments(python):
    answer = python("openai_tools.py")
    assert answer["finish_reason"] == "tool_calls"
    assert answer["content"] == "Let me see."
    assert {name: answer[name] for name in CALL} == CALL
    assert answer["streamed"] == [["get_weather", {"city": "Paris"}]]
    assert answer["text"] == FORECAST


def test_openai_uses_responses(python, expected):
    answer = python("openai_responses.py")
    assert answer["text"] == answer["streamed"] == answer["streamed_text"] == answer["retrieved"] == expected["text"]
    assert answer["usage"] == expected["tokens"]
    assert answer["status"] == "completed"
    assert set(answer["unknown_fields"]) <= OPEN_RESPONSES
    assert answer["parsed"].keys() == {"name", "age"}
    assert answer["remembers"]
    assert {name: answer[name] for name in CALL} == CALL
    assert answer["forecast"] == FORECAST


def test_a_langchain_agent_calls_its_tool(python, expected):
    answer = python("langchain_agent.py")
    assert answer["text"] == answer["streamed"] == expected["text"]
    assert answer["usage"] == answer["streamed_usage"] == expected["tokens"]
    assert answer["parsed"].keys() == {"name", "age"}
    assert answer["kinds"] == ["human", "ai", "tool", "ai"]
    assert answer["calls"] == [["get_weather", {"city": "Paris"}]]
    assert answer["asked_for"] == ["Paris"] * 3
    assert answer["forecast"] == answer["forecast_by_responses"] == FORECAST
    assert answer["streamed_forecast"] == f"Let me see.{FORECAST}"


def test_litellm_completes_and_calls_tools(python, expected):
    answer = python("litellm_completion.py")
    assert answer["text"] == answer["streamed"] == expected["text"]
    assert answer["usage"] == answer["streamed_usage"] == expected["tokens"]
    assert answer["finish_reason"] == "tool_calls"
    assert {name: answer[name] for name in CALL} == CALL
    assert answer["streamed_arguments"] == {"city": "Paris"}
    assert answer["forecast"] == FORECAST


def test_openai_agents_run_on_chat_completions_and_on_responses(python):
    answer = python("openai_agents.py")
    for run in (answer["chat"], answer["responses"]):
        assert run["forecast"] == run["streamed_forecast"] == FORECAST
        assert run["deltas"] == f"Let me see.{FORECAST}"
        assert run["asked_for"] == ["Paris", "Paris"]
        assert run["requests"] == 2
        assert run["counted"]
        assert run["parsed"].keys() == {"name", "age"}


def test_anthropic_messages_are_streamed_and_tools_called(python, expected):
    answer = python("anthropic_messages.py")
    assert answer["text"] == answer["streamed"] == answer["streamed_text"] == expected["text"]
    usage = [expected["prompt_tokens"], expected["tokens"] - expected["prompt_tokens"]]
    assert answer["usage"] == answer["streamed_usage"] == usage
    assert answer["counted"] == expected["prompt_tokens"]
    assert (answer["stop_reason"], answer["tool_stop_reason"]) == ("end_turn", "tool_use")
    assert answer["unknown_fields"] == []
    assert answer["blocks"] == ["text", "tool_use"]
    assert (answer["name"], answer["input"], answer["partial"]) == ("get_weather", {"city": "Paris"}, {"city": "Paris"})
    assert answer["asked_for"] == ["Paris"]
    assert answer["forecast"] == answer["run_forecast"] == FORECAST
