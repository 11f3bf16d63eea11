"""One model's text side: its tokenizer files read once, then text to token ids and back.

`tokenizers` does the work (transformers' AutoTokenizer takes seconds to import).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from tokenizers import Tokenizer

from languagepipes_node.end_model.text.chat_template import ChatTemplate, load_chat_template
from languagepipes_node.end_model.text.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    PrefixDetokenizer,
    byte_table,
    is_byte_level,
    space_mark,
)
from languagepipes_node.end_model.text.errors import NoChatTemplate, TokenizerError
from languagepipes_node.end_model.text.least_tokens import LeastTokens, least_tokens
from languagepipes_node.end_model.text.model_files import Files, json_object, optional_file, token_text

_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_PLAIN_CHARACTERS = "aeoi0xX1"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TextCodec:
    """One model's text side. Immutable and safe to use from several threads.

    stop_token_ids: tokens that end an answer, from generation_config.json and tokenizer_config.json.
    vocabulary_size: one more than the tokenizer's largest id.
    """

    stop_token_ids: frozenset[int]
    vocabulary_size: int
    template: ChatTemplate | None
    _tokenizer: Any = field(repr=False)
    _special_ids: frozenset[int] = field(repr=False)
    _token_bytes: tuple[bytes, ...] | None = field(repr=False)
    _space_mark: str | None = field(repr=False)
    _least_tokens: LeastTokens | None = field(repr=False)

    @classmethod
    def load(cls, files: Files) -> TextCodec:
        """Read the tokenizer through `files`, which returns a named file's bytes or raises KeyError.

        Raises TokenizerError if a needed file is absent or wrong, or the chat template does not compile.
        """
        raw = optional_file(files, "tokenizer.json")
        if raw is None:
            raise TokenizerError(
                "the model has no tokenizer.json: add one (transformers' AutoTokenizer.save_pretrained writes it)"
            )
        # Batches of one gain nothing from a pool of threads, which would take cores from the layers.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            tokenizer = Tokenizer.from_buffer(raw)
            description = orjson.loads(raw)
        except Exception as error:  # tokenizers raises bare Exception
            raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()

        config = json_object(files, "tokenizer_config.json")
        legacy = json_object(files, "special_tokens_map.json")
        special_texts = {
            name: text
            for name in _SPECIAL_TOKENS
            if (text := token_text(config.get(name)) or token_text(legacy.get(name))) is not None
        }
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        specials = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        token_bytes = byte_table(vocabulary, size) if is_byte_level(description.get("decoder")) else None
        return cls(
            stop_token_ids=_stop_token_ids(files, special_texts, tokenizer),
            vocabulary_size=size,
            template=load_chat_template(files, config, special_texts),
            _tokenizer=tokenizer,
            _special_ids=frozenset(specials),
            _token_bytes=token_bytes,
            _space_mark=space_mark(description.get("decoder")),
            _least_tokens=None if token_bytes is None else least_tokens(description, token_bytes),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """`text` as token ids, with the tokenizer's own special tokens (a BOS, say) unless they are in it already."""
        # Unlike `encode`, a batch lets other threads run meanwhile (a megabyte takes a second: the ring's heartbeats
        # would stop), and "fast", which leaves out the offsets, takes a third of the time.
        return tuple(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def least_tokens(self, text: str) -> int:
        """A number of tokens that `text` has at the very least, known without tokenising it; often far fewer than it
        has, and 0 for tokenizers that nothing can be said of."""
        return 0 if self._least_tokens is None else self._least_tokens.of(text)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> tuple[int, ...]:
        """`messages` through the chat template, with the prompt for an answer at the end. Raises TemplateError."""
        return self.encode(self.render_chat(messages, variables), add_special_tokens=False)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text that `encode_chat` tokenises. variables: further names that the template may read."""
        if self.template is None:
            raise NoChatTemplate("this model has no chat template: use /v1/completions with a prompt of your own")
        return self.template.render(messages, variables, tools)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The whole text of `tokens`."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def spellings(self, tokens: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary spells them; empty for ids that it does not have."""
        return [str(self._tokenizer.id_to_token(token) or "") for token in tokens]

    def detokenizer(
        self, prompt: Sequence[int], shown: frozenset[int] = frozenset(), *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """For an answer to `prompt`, whose end decides how some tokenizers spell the first token. shown: special tokens
        whose text is wanted in any case."""
        hidden = self._special_ids - shown if skip_special_tokens else frozenset[int]()
        if self._token_bytes is not None:
            return ByteLevelDetokenizer(self._token_bytes, hidden)
        return PrefixDetokenizer(
            self._tokenizer,
            hidden,
            prompt,
            shown & self._special_ids,
            keep_special_tokens=not skip_special_tokens,
        )

    def special_ids(self, texts: Collection[str]) -> frozenset[int]:
        """The special tokens that are one of `texts`, or the beginning of one."""
        found = set()
        for number in self._special_ids:
            name = self._tokenizer.id_to_token(number)
            if name and any(text.startswith(name) for text in texts):
                found.add(number)
        return frozenset(found)

    def special_tokens(self, texts: Collection[str]) -> dict[str, int]:
        """The same, with the text of each."""
        return {str(self._tokenizer.id_to_token(number)): number for number in self.special_ids(texts)}

    def spelling(self) -> tuple[list[bytes], frozenset[int]]:
        """What each id adds to a text (b"": no text is spelled with it), and the ids of special tokens.

        Raises TokenizerError if this tokenizer's tokens are no such bytes.
        """
        if self._token_bytes is not None:
            return list(self._token_bytes), self._special_ids
        if self._space_mark is None:
            raise TokenizerError("the tokenizer is neither byte-level nor of the SentencePiece kind")
        names = [self._tokenizer.id_to_token(token) for token in range(self.vocabulary_size)]
        pieces = [b"" if name is None else _piece_bytes(name, self._space_mark) for name in names]
        # A byte that has a token of its own as a character is never spelled as a byte.
        spelled = {piece for name, piece in zip(names, pieces, strict=True) if name and not _BYTE_TOKEN.fullmatch(name)}
        for token, name in enumerate(names):
            if name and _BYTE_TOKEN.fullmatch(name) and pieces[token] in spelled:
                pieces[token] = b""
        return pieces, self._special_ids

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes as they are shown beside its log probability, special tokens included."""
        if self._token_bytes is not None:
            return self._token_bytes[token] if token < self.vocabulary_size else b""
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        return self._decoded_inside(token).encode()

    def token_name(self, token: int) -> str:
        """One token as a string that no other token has, for maps from tokens to numbers: its text; `bytes:\\xNN…`
        where it is no text by itself, or another token has the text of this byte."""
        raw = self.token_bytes(token)
        name = self._tokenizer.id_to_token(token) or ""
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return _escaped(raw)
        if self._token_bytes is None and _BYTE_TOKEN.fullmatch(name):
            spellings = (text, text.replace(" ", "\u2581"))
            if any(self._tokenizer.token_to_id(spelling) is not None for spelling in spellings):
                return _escaped(raw)
        return text or f"token_id:{token}"

    def _decoded_inside(self, token: int) -> str:
        """A token's text where others stand before it: at the start of a text decoders drop its leading space."""
        alone = str(self._tokenizer.decode([token], skip_special_tokens=False))
        before = self._plain_token
        if before is None:
            return alone
        start = str(self._tokenizer.decode([before], skip_special_tokens=False))
        text = str(self._tokenizer.decode([before, token], skip_special_tokens=False))
        return text[len(start) :] if text.startswith(start) else alone

    @functools.cached_property
    def _plain_token(self) -> int | None:
        """A token that is a letter or digit wherever it stands; None if there is none."""
        for character in _PLAIN_CHARACTERS:
            token = self._tokenizer.token_to_id(character)
            if token is not None and str(self._tokenizer.decode([token])) == character:
                return int(token)
        plain = (number for name, number in self._tokenizer.get_vocab().items() if name.isascii() and name.isalnum())
        return min((number for number in plain if number not in self._special_ids), default=None)

    def is_special(self, token: int) -> bool:
        """Whether it is left out of text by default."""
        return token in self._special_ids

    def special_tokens_in(self, text: str) -> list[tuple[int, str]]:
        """The special tokens that are spelled out in `text`, with their spellings."""
        found = self.encode(text, add_special_tokens=False)
        return [(token, str(self._tokenizer.id_to_token(token))) for token in found if token in self._special_ids]

    def special_token(self, text: str) -> int | None:
        """The special token that is spelled so; None if there is none."""
        token = self._tokenizer.token_to_id(text)
        return int(token) if token in self._special_ids else None


def _piece_bytes(name: str, space_mark: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(name)
    return bytes([int(match[1], 16)]) if match else name.replace(space_mark, " ").encode()


def _stop_token_ids(files: Files, special_texts: dict[str, str], tokenizer: Any) -> frozenset[int]:
    ids = _token_ids(json_object(files, "generation_config.json").get("eos_token_id"), "generation_config.json")
    if not ids:
        ids = _token_ids(json_object(files, "config.json").get("eos_token_id"), "config.json")
    if (eos := special_texts.get("eos_token")) is not None and (number := tokenizer.token_to_id(eos)) is not None:
        ids.add(int(number))
    return frozenset(ids)


def _escaped(raw: bytes) -> str:
    """Bytes that are no text, as OpenAI's completions show them."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _token_ids(value: Any, file: str) -> set[int]:
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TokenizerError(f"{file}: eos_token_id is {value!r}, expected a token id or a list of them")
    return set(numbers)
