"""Java's HTTP client, which offers HTTP/2 to any address that is no https, and LangChain4j, which is built on it."""

from __future__ import annotations

FORECAST = "It is sunny in Paris, as the tool says."


def test_the_http_client_reads_answers_and_streams(java, expected):
    answer = java("Chat")
    assert answer["status"] == 200
    for whole in (answer["whole"], answer["again"]):
        assert whole["choices"][0]["message"]["content"] == expected["text"]
    deltas = [event["choices"][0]["delta"] for event in answer["events"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == expected["text"]


def test_langchain4j_chats_streams_makes_objects_and_calls_tools(java, expected):
    answer = java("Assistant")
    assert answer["text"] == answer["streamed"] == answer["streamed_text"] == expected["text"]
    assert answer["usage"] == expected["tokens"]
    assert answer["parsed"].keys() == {"name", "age"}
    assert answer["asked_for"] == ["Paris", "Paris"]
    assert answer["forecast"] == answer["streamed_forecast"] == FORECAST
    assert answer["streamed_tokens"] == f"Let me see.{FORECAST}"
