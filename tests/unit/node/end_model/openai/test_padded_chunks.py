"""Chunks with random characters: texts of one kind of chunk cannot be told apart by their sizes."""

from __future__ import annotations

import orjson
import pytest
from languagepipes_node.end_model.openai.obfuscation import in_events


@pytest.mark.parametrize("more", [{}, {"usage": None}], ids=["", "usage"])
@pytest.mark.parametrize(
    "choice",
    [
        lambda text: {"text": text},
        lambda text: {"delta": {"content": text}},
        lambda text: {"delta": {"reasoning": text, "reasoning_content": text}},
        lambda text: {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}},
    ],
    ids=["completion", "content", "thinking", "arguments"],
)
def test_texts_of_up_to_20_bytes_have_one_size(choice, more):
    sizes = set()
    for length in range(1, 21):
        chunk = {"id": "x", "choices": [{"index": 0, **choice("a" * length), "logprobs": None}], **more}
        sizes.add(len(in_events(b"data: " + orjson.dumps(chunk) + b"\n\n")))
    assert len(sizes) == 1
