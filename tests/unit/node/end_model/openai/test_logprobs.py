"""What log probabilities of a whole answer occupy until they are sent."""

from __future__ import annotations

import tracemalloc

import orjson
from languagepipes_node.end_model.openai.answers import ScoredToken
from languagepipes_node.end_model.openai.logprobs import LogprobWriter, text_logprobs
from languagepipes_node.end_model.requests import TokenLogprobs
from languagepipes_node.end_model.text import TextCodec
from support.tiny_tokenizer import model_files, train_tokenizer

LOGPROBS = TokenLogprobs(-1.5, tuple((token, -float(token)) for token in range(40, 45)))
TOKENS = 2000


def test_a_kept_token_takes_little_more_than_its_text() -> None:
    writer = LogprobWriter(TextCodec.load(model_files(train_tokenizer()).__getitem__))
    writer.text_token(ScoredToken(30, LOGPROBS, 0))
    tracemalloc.start()
    try:
        kept = [writer.text_token(ScoredToken(30, LOGPROBS, offset)) for offset in range(TOKENS)]
        occupied, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    written = orjson.loads(b"".join(text_logprobs(kept)))
    assert written["text_offset"] == list(range(TOKENS))
    assert written["token_logprobs"] == [-1.5] * TOKENS
    assert occupied < 600 * TOKENS
