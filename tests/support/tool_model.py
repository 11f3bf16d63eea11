"""Text sides of models that know tools or think: the small tokenizer with a template, and marks as special tokens."""

from __future__ import annotations

from collections.abc import Sequence

from languagepipes_node.end_model.text import TextCodec
from tokenizers import AddedToken

from support.tiny_tokenizer import model_files, train_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def codec_of(template: str, special: Sequence[str] = ()) -> TextCodec:
    """special: further tokens, which detokenising leaves out."""
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return TextCodec.load(model_files(tokenizer, chat_template=template).__getitem__)
