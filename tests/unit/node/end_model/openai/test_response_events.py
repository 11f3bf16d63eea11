"""What the end of a response's stream is made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
from languagepipes_node.end_model.openai.answers import Piece
from languagepipes_node.end_model.openai.response_models import CompletionTokensDetails, PromptTokensDetails, Usage
from languagepipes_node.end_model.openai.responses.output import ResponseFormat

USAGE = Usage(
    prompt_tokens=1,
    completion_tokens=1,
    total_tokens=2,
    prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    completion_tokens_details=CompletionTokensDetails(reasoning_tokens=0),
)


def read(event: bytes) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(event.split(b"data: ")[1])
    return value


def test_the_last_events_come_one_by_one() -> None:
    """Each may be megabytes with log probabilities: all at once would hold the event loop."""
    format = ResponseFormat(SimpleNamespace(served_name="tiny"), {}, place=None)  # type: ignore[arg-type]
    format.event(0, Piece("Hello", (), None))
    events = list(format.endings(USAGE))
    assert [event.count(b"event: ") for event in events] == [1, 1, 1, 1]
    assert [read(event)["type"] for event in events] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
