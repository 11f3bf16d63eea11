"""Text to token ids and back: tokenizer, chat template, incremental detokenising, stop strings.

Built from the small files beside the weights. It knows nothing of HTTP or the engine.
"""

from languagepipes_node.end_model.text.chat_template import ChatTemplate
from languagepipes_node.end_model.text.codec import TextCodec
from languagepipes_node.end_model.text.detokenizer import Detokenizer
from languagepipes_node.end_model.text.errors import NoChatTemplate, TemplateError, TextError, TokenizerError
from languagepipes_node.end_model.text.generation_config import SamplingDefaults
from languagepipes_node.end_model.text.stop_strings import StopStrings

__all__ = [
    "ChatTemplate",
    "Detokenizer",
    "NoChatTemplate",
    "SamplingDefaults",
    "StopStrings",
    "TemplateError",
    "TextCodec",
    "TextError",
    "TokenizerError",
]
