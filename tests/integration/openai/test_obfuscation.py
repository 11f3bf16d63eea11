"""`stream_options.include_obfuscation`: deltas of short texts have one size, and the same texts as without."""

from __future__ import annotations

import httpx
import pytest

WORDS = "I am a model, and you understand."
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
TEXT = ("/v1/completions", {"prompt": "hi", "max_tokens": 200})
RESPONSE = ("/v1/responses", {"input": "hi"})


def events_of(served, route, **fields) -> list[str]:
    body = {"model": "tiny", "stream": True, **fields}
    return [event for event in httpx.post(served.url + route, json=body).text.split("\n\n") if '"delta":"' in event
            or '"delta":{"content":"' in event or '"text":"' in event]  # fmt: skip


@pytest.mark.parametrize(("route", "fields"), [CHAT, TEXT], ids=["chat", "completion"])
@pytest.mark.parametrize("options", [{}, {"include_usage": True}, {"include_obfuscation": None}], ids=str)
def test_chunks_of_short_texts_have_one_size_if_asked_for(serve, route, fields, options):
    served = serve(WORDS)
    plain = events_of(served, route, **fields, stream_options={**options})
    assert len({len(event) for event in plain if '"finish_reason":null' in event}) > 1
    padded = events_of(served, route, **fields, stream_options={**options, "include_obfuscation": True})
    assert len(padded) == len(plain)
    assert len({len(event) for event in padded if '"finish_reason":null' in event}) == 1


def test_deltas_of_short_texts_have_one_size_in_responses(serve):
    served = serve(WORDS)
    events = events_of(served, RESPONSE[0], **RESPONSE[1], stream_options={"include_obfuscation": True})
    deltas = [event for event in events if "output_text.delta" in event]
    counted = {len(str(number)) for number in range(len(deltas) + 4)}  # sequence numbers of one digit and of two
    assert len(deltas) > 5
    assert len({len(event) for event in deltas}) <= len(counted)
    assert all('"obfuscation":"' in event for event in deltas)


def test_the_openai_client_reads_the_same_text(serve):
    served = serve(WORDS)
    options = {"stream": True, "stream_options": {"include_obfuscation": True}}
    chunks = list(served.client.chat.completions.create(model="tiny", messages=CHAT[1]["messages"], **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == WORDS
    fillings = {chunk.obfuscation for chunk in chunks}
    assert len(fillings) == len(chunks)
    events = list(served.client.responses.create(model="tiny", input="hi", **options))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == WORDS
    assert all(event.obfuscation for event in deltas)
    assert not any(hasattr(event, "obfuscation") for event in events if not event.type.endswith(".delta"))


def test_token_ids_and_scores_stand_beside_it(serve):
    served = serve(WORDS)
    stream = served.client.chat.completions.create(
        model="tiny", messages=CHAT[1]["messages"], stream=True, logprobs=True,
        stream_options={"include_obfuscation": True, "include_usage": True}, extra_body={"return_token_ids": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[0].prompt_token_ids == list(served.engine.submissions[0].prompt)
    ids = [token for chunk in chunks[:-1] for token in getattr(chunk.choices[0], "token_ids", None) or []]
    assert len(ids) == chunks[-1].usage.completion_tokens
    assert all(chunk.obfuscation is not None for chunk in chunks[:-1])
    assert chunks[-1].obfuscation is None


@pytest.mark.parametrize(("route", "fields"), [CHAT, TEXT, RESPONSE], ids=["chat", "completion", "response"])
def test_it_is_for_streams_alone_and_a_boolean(serve, route, fields):
    served = serve(WORDS)
    options = {"model": "tiny", "stream_options": {"include_obfuscation": True}}
    answer = httpx.post(served.url + route, json={**options, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream_options")
    options = {"model": "tiny", "stream": True, "stream_options": {"include_obfuscation": "yes"}}
    answer = httpx.post(served.url + route, json={**options, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream_options.include_obfuscation"
