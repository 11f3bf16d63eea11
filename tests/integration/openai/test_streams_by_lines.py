"""A client that splits a stream by Python's lines (httpx's `iter_lines`) gets whole events, whatever the text holds."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

TEXT = "one\u2028two\u2029three\u0085four"
HI = [{"role": "user", "content": "hi"}]


def chat(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def completion(event: dict[str, Any]) -> str:
    return "".join(choice["text"] for choice in event["choices"])


def response(event: dict[str, Any]) -> str:
    return str(event["delta"]) if event["type"] == "response.output_text.delta" else ""


def message(event: dict[str, Any]) -> str:
    return str(event["delta"].get("text", "")) if event["type"] == "content_block_delta" else ""


@pytest.mark.parametrize(
    ("path", "body", "text_of"),
    [
        ("/v1/chat/completions", {"messages": HI, "logprobs": True}, chat),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 64}, completion),
        ("/v1/responses", {"input": "hi"}, response),
        ("/v1/messages", {"messages": HI, "max_tokens": 64}, message),
    ],
)
def test_each_line_of_a_stream_is_a_whole_event(serve, path, body, text_of):
    served = serve(TEXT)
    with httpx.stream("POST", served.url + path, json={"model": "tiny", "stream": True, **body}, timeout=30) as stream:
        lines = [line for line in stream.iter_lines() if line]

    assert stream.status_code == 200
    fields = [line.partition(": ") for line in lines]
    assert {name for name, _, _ in fields} <= {"data", "event"}
    events = [json.loads(data) for name, _, data in fields if name == "data" and data != "[DONE]"]
    assert "".join(map(text_of, events)) == TEXT
