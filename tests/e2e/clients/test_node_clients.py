"""Clients for Node, each as its documentation uses it."""

from __future__ import annotations

FORECAST = "It is sunny in Paris, as the tool says."


def test_openai_chats_streams_parses_responds_and_runs_tools(node, expected):
    answer = node("openai_chat.mjs")
    texts = ("text", "streamed", "helped", "helped_text", "response", "streamed_response")
    assert {name: answer[name] for name in texts} == dict.fromkeys(texts, expected["text"])
    assert answer["usage"] == answer["streamed_usage"] == expected["tokens"]
    assert answer["parsed"].keys() == {"name", "age"}
    assert answer["asked_for"] == ["Paris", "Paris"]
    assert answer["forecast"] == answer["streamed_forecast"] == FORECAST


def test_the_ai_sdk_generates_streams_calls_tools_and_makes_objects_with_each_provider(node, expected):
    for provider, answer in node("ai_sdk.mjs").items():
        assert answer["text"] == answer["streamed"] == expected["text"], provider
        assert answer["usage"] == answer["streamed_usage"] == expected["tokens"], provider
        assert answer["finish_reason"] == "stop", provider
        assert answer["warnings"] == [], provider
        assert answer["steps"] == ["tool-calls", "stop"], provider
        assert answer["calls"] == [["get_weather", {"city": "Paris"}]], provider
        assert answer["asked_for"] == ["Paris", "Paris"], provider
        assert answer["forecast"] == answer["streamed_forecast"] == FORECAST, provider
        assert answer["parsed"] == answer["output"], provider
        assert answer["parsed"].keys() == {"name", "age"}, provider
