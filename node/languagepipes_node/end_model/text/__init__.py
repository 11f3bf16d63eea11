"""Text to token ids and back: tokenizer, chat template, incremental detokenising, stop strings.

Built from the small files beside the weights. It knows nothing of HTTP or the engine.
"""

from languagepipes_node.end_model.text.codec import (
    ChatTemplate,
    Detokenizer,
    NoChatTemplate,
    StopStrings,
    TemplateError,
    TextCodec,
    TextError,
    TokenizerError,
)

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "NoChatTemplate",
    "StopStrings",
    "TemplateError",
    "TextCodec",
    "TextError",
    "TokenizerError",
]
