"""Server-sent events of every shape, into the record of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from languagepipes_operator.cli.bench.records import RequestRecord
from languagepipes_operator.cli.bench.stream import AnswerReader, StreamError


def read(*pieces: bytes) -> tuple[RequestRecord, AnswerReader]:
    """Each piece comes a second after the one before."""
    record = RequestRecord(1, 0.0, 8)
    reader = AnswerReader(record)
    for second, piece in enumerate(pieces, start=1):
        reader.feed(piece, float(second))
    return record, reader


def event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(finish: str | None = None, **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": finish}], "usage": None})


DONE = b"data: [DONE]\n\n"
USAGE = event({"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}})


def test_chunks_with_something_of_the_answer_are_timed_and_others_are_not() -> None:
    record, reader = read(
        delta(role="assistant", content=""), delta(content="a"), delta(content="b"), delta("stop"), USAGE, DONE
    )

    assert record.chunk_times == [2.0, 3.0]
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (12, 7, "stop")
    assert reader.done


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": "hm"},
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {"refusal": "no"},
    ],
)
def test_thinking_and_calls_of_tools_count_as_tokens(fields: dict[str, Any]) -> None:
    assert read(delta(**fields))[0].chunk_times == [1.0]


def test_completions_are_read_too() -> None:
    chunk = {"choices": [{"index": 0, "text": " word", "finish_reason": "length"}]}

    record, reader = read(event(chunk))

    assert (record.chunk_times, record.finish_reason) == ([1.0], "length")
    assert (reader.done, reader.whole) == (False, True), "some servers close without [DONE]"


def test_events_may_be_cut_anywhere_and_have_comments_and_carriage_returns_between_them() -> None:
    whole = b": ping\r\n\r\n" + delta(content="a").replace(b"\n", b"\r\n") + b"event: x\n" + delta(content="é") + DONE
    record, reader = read(*(whole[place : place + 1] for place in range(len(whole))))

    assert len(record.chunk_times) == 2
    assert reader.done


def test_usage_in_every_chunk_counts_with_its_last_value() -> None:
    chunks = [
        event({"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 3, "completion_tokens": count}})
        for count in (1, 2, 5)
    ]

    assert read(*chunks)[0].output_tokens == 5


@pytest.mark.parametrize(
    ("sent", "kind", "message"),
    [
        (b'data: {"error": {"message": "no memory"}}\n\n', "error in the stream", "no memory"),
        (b'data: {"error": "gone"}\n\n', "error in the stream", "gone"),
        (b"data: {broken\n\n", "malformed stream", "an event that is no JSON: '{broken'"),
        (b"data: 5\n\n", "malformed stream", "an event that is no JSON object: '5'"),
    ],
)
def test_what_is_no_answer_is_a_failure_with_its_message(sent: bytes, kind: str, message: str) -> None:
    with pytest.raises(StreamError) as caught:
        read(sent)

    assert (caught.value.kind, str(caught.value)) == (kind, message)


def test_wrong_types_in_an_event_are_left_out() -> None:
    record, _ = read(
        event({"choices": None}),
        event({"choices": [None, {"delta": None, "text": None, "finish_reason": 3}]}),
        event({"usage": {"prompt_tokens": True, "completion_tokens": -1}}),
    )

    assert record == RequestRecord(1, 0.0, 8)
