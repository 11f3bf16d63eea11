"""What can be wrong with a model's text side, or with messages for it.

TextError
├── TokenizerError       the model's files give no usable tokenizer: nothing can be served
└── TemplateError        the chat template refused these messages: the client's request is wrong
    └── NoChatTemplate   the model has none
"""

from __future__ import annotations


class TextError(Exception):
    """The base of this package's errors."""


class TokenizerError(TextError):
    """The model's tokenizer files cannot be used; the message names the file and the remedy."""


class TemplateError(TextError):
    """The chat template could not render these messages; the message says why."""


class NoChatTemplate(TemplateError):
    """The model comes without a chat template."""
