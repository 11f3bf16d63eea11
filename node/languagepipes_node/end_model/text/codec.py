"""Text to token ids and back: tokenizer, chat template, incremental detokenising, stop strings.

Built from the small files beside the weights; `tokenizers` and a sandboxed jinja2 do the work (transformers'
AutoTokenizer takes seconds to import). It knows nothing of HTTP or the engine.

    TextError
    ├── TokenizerError       the model's files give no usable tokenizer: nothing can be served
    └── TemplateError        the chat template refused these messages: the client's request is wrong
        └── NoChatTemplate   the model has none
"""

from __future__ import annotations

import codecs
import datetime
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
import orjson
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

_RENDER_SECONDS = 2.0
_MAX_TEMPLATE_CHARACTERS = 1 << 20
_RENDERED_CHARACTERS_PER_INPUT_CHARACTER = 4
_RENDERED_CHARACTERS_EXTRA = 1 << 18
# Enough context for a decoder to know whether a token starts a word, and few enough to decode in microseconds.
_CONTEXT_TOKENS = 6
# More pending tokens than any character has bytes: what has not become text by then never will.
_MAX_PENDING_TOKENS = 12
_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextError(Exception):
    """The base of this module's errors."""


class TokenizerError(TextError):
    """The model's tokenizer files cannot be used; the message names the file and the remedy."""


class TemplateError(TextError):
    """The chat template could not render these messages; the message says why."""


class NoChatTemplate(TemplateError):
    """The model comes without a chat template."""


class Detokenizer(Protocol):
    """Token ids to text, one at a time: the pieces, joined, are the text of all tokens, each piece whole characters."""

    def push(self, token: int) -> str:
        """The text that `token` completes: often a word, empty while a character is incomplete."""
        ...

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete, or nothing."""
        ...


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

    @classmethod
    def load(cls, files: Callable[[str], bytes]) -> TextCodec:
        """Read the tokenizer through `files`, which returns a named file's bytes or raises KeyError.

        Raises TokenizerError if a needed file is absent or wrong, or the chat template does not compile.
        """
        raw = _optional(files, "tokenizer.json")
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

        config = _json_object(files, "tokenizer_config.json")
        legacy = _json_object(files, "special_tokens_map.json")
        special_texts = {
            name: text
            for name in _SPECIAL_TOKENS
            if (text := _token_text(config.get(name)) or _token_text(legacy.get(name))) is not None
        }
        vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        specials = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        byte_level = _is_byte_level(description.get("decoder"))
        return cls(
            stop_token_ids=_stop_token_ids(files, special_texts, tokenizer),
            vocabulary_size=size,
            template=_chat_template(files, config, special_texts),
            _tokenizer=tokenizer,
            _special_ids=frozenset(specials),
            _token_bytes=_byte_table(vocabulary, size) if byte_level else None,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """`text` as token ids, with the tokenizer's own special tokens (a BOS, say) unless they are in it already."""
        # Unlike `encode`, a batch lets other threads run meanwhile (a megabyte takes a second: the ring's heartbeats
        # would stop), and "fast", which leaves out the offsets, takes a third of the time.
        return tuple(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> tuple[int, ...]:
        """`messages` through the chat template, with the prompt for an answer at the end. Raises TemplateError."""
        return self.encode(self.render_chat(messages, variables), add_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """The text that `encode_chat` tokenises. variables: further names that the template may read."""
        if self.template is None:
            raise NoChatTemplate("this model has no chat template: use /v1/completions with a prompt of your own")
        return self.template.render(messages, variables)

    def decode(self, tokens: Sequence[int]) -> str:
        """The whole text of `tokens`, special tokens left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def detokenizer(self, prompt: Sequence[int]) -> Detokenizer:
        """For an answer to `prompt`, whose end decides how some tokenizers spell the first token."""
        if self._token_bytes is not None:
            return _ByteLevelDetokenizer(self._token_bytes, self._special_ids)
        return _PrefixDetokenizer(self._tokenizer, prompt)

    def token_bytes(self, token: int) -> bytes:
        """One token's bytes as they are shown beside its log probability, special tokens included."""
        if self._token_bytes is not None:
            return self._token_bytes[token] if token < self.vocabulary_size else b""
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()


class _ByteLevelDetokenizer:
    """For byte-level tokenizers (Qwen, Llama 3, SmolLM): every token is bytes, whatever stands beside it. Exact."""

    def __init__(self, token_bytes: tuple[bytes, ...], special_ids: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._special_ids = special_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        # A model's head may have more rows than the tokenizer has tokens.
        if token in self._special_ids or token >= len(self._token_bytes):
            return ""
        return self._decoder.decode(self._token_bytes[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _PrefixDetokenizer:
    """For any other tokenizer: decode a window of tokens with and without the new one; the difference is its text.

    The window starts some tokens back, because a token's spelling may depend on what stands before it (a leading
    space is dropped at the start of a text). The method is that of Hugging Face's text-generation-inference.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = len(self._window)  # tokens of the window whose text was given out

    def push(self, token: int) -> str:
        self._window.append(token)
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        incomplete = after.endswith("\ufffd") and len(self._window) - self._shown < _MAX_PENDING_TOKENS
        if incomplete or len(after) <= len(before):
            return ""
        return self._give_out(before, after)

    def finish(self) -> str:
        before = self._decode(self._window[: self._shown])
        after = self._decode(self._window)
        return self._give_out(before, after) if len(after) > len(before) else ""

    def _give_out(self, before: str, after: str) -> str:
        self._window = self._window[max(0, len(self._window) - _CONTEXT_TOKENS) :]
        self._shown = len(self._window)
        return after[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class StopStrings:
    """Finds the first stop string to become complete in a text that comes in pieces, wherever the pieces are cut.

    Text that may yet turn out to belong to a stop string is held back; a stop string's own text is never given out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, whether a stop string is complete). After True nothing more is to be shown."""
        if not self._stops:
            return text, False
        held = self._held + text
        # The earliest end wins, so that it does not matter whether the text came at once or letter by letter.
        ends = [(start + len(stop), start) for stop in self._stops if (start := held.find(stop)) >= 0]
        if ends:
            self._held = ""
            return held[: min(ends)[1]], True
        keep = self._tail_to_keep(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _tail_to_keep(self, text: str) -> int:
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class ChatTemplate:
    """A model's Jinja chat template, in a sandbox, with what transformers offers templates beside plain Jinja.

    Model files are not trusted to be kind: no attribute that starts with an underscore, no change to what is passed
    in, and an end to the time and the text that one rendering takes.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises jinja2.TemplateError if `source` does not compile."""
        if len(source) > _MAX_TEMPLATE_CHARACTERS:
            raise jinja2.TemplateError(
                f"it has {len(source)} characters, at most {_MAX_TEMPLATE_CHARACTERS} are accepted"
            )
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
        )
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        parsed = environment.parse(source)
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(parsed))
        literals = [node.value for node in parsed.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
        self.knows_developer_role = "developer" in literals

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Raises TemplateError with the template's own message, or with what is wrong with it."""
        given = sum(len(text) for message in messages for text in message.values() if isinstance(text, str))
        limit = _RENDERED_CHARACTERS_PER_INPUT_CHARACTER * given + _RENDERED_CHARACTERS_EXTRA
        names = {**self._special_tokens, **variables}
        names |= {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        pieces: list[str] = []
        size = 0
        token = _deadline.set(time.monotonic() + _RENDER_SECONDS)
        try:
            for piece in self._template.generate(names):
                size += len(piece)
                if size > limit:
                    raise TemplateError(f"the model's chat template wrote more than {limit} characters")
                pieces.append(piece)
                _check_deadline()
        except TemplateError:
            raise
        except RecursionError as error:
            raise TemplateError("the model's chat template recurses without end") from error
        except Exception as error:  # a template is foreign code: whatever it raises, these messages cannot be rendered
            said = str(error) if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise TemplateError(f"the model's chat template refused the messages: {said}") from error
        finally:
            _deadline.reset(token)
        return "".join(pieces)


_deadline: ContextVar[float] = ContextVar("chat_template_deadline", default=float("inf"))


def _check_deadline() -> None:
    if time.monotonic() > _deadline.get():
        raise TemplateError(f"the model's chat template took longer than {_RENDER_SECONDS:g} s")


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace(), without the names that lead into Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.TemplateError(f"namespace attribute {name!r} starts with an underscore")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().astimezone().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Unlike Jinja's own filter, which escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Every look-up and call in a template passes here, so that a loop without end meets the deadline."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters["tojson"] = _tojson
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": _Namespace,
            "dict": _new_dict,
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        _check_deadline()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        _check_deadline()
        return super().getitem(obj, argument)

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_deadline()
        return super().call(__context, __obj, *args, **kwargs)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks answers for training; here its body alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _optional(files: Callable[[str], bytes], name: str) -> bytes | None:
    try:
        return files(name)
    except KeyError:
        return None


def _json_object(files: Callable[[str], bytes], name: str) -> dict[str, Any]:
    raw = _optional(files, name)
    if raw is None:
        return {}
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise TokenizerError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{name} holds a JSON {type(value).__name__}, not an object")
    return value


def _token_text(value: Any) -> str | None:
    """A special token's text, which the config gives as a string or as an AddedToken object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _stop_token_ids(files: Callable[[str], bytes], special_texts: dict[str, str], tokenizer: Any) -> frozenset[int]:
    ids = _token_ids(_json_object(files, "generation_config.json").get("eos_token_id"), "generation_config.json")
    if not ids:
        ids = _token_ids(_json_object(files, "config.json").get("eos_token_id"), "config.json")
    if (eos := special_texts.get("eos_token")) is not None and (number := tokenizer.token_to_id(eos)) is not None:
        ids.add(int(number))
    return frozenset(ids)


def _token_ids(value: Any, file: str) -> set[int]:
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TokenizerError(f"{file}: eos_token_id is {value!r}, expected a token id or a list of them")
    return set(numbers)


def _chat_template(
    files: Callable[[str], bytes], config: dict[str, Any], special_texts: dict[str, str]
) -> ChatTemplate | None:
    """In transformers' order: chat_template.jinja, then chat_template.json, then the tokenizer's configuration."""
    name = "chat_template.jinja"
    raw = _optional(files, name)
    source: Any = None
    if raw is not None:
        try:
            source = raw.decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{name} is no UTF-8: {error}") from error
    if source is None:
        name = "chat_template.json"
        source = _json_object(files, name).get("chat_template")
    if source is None:
        name = "tokenizer_config.json"
        source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = [entry for entry in source if isinstance(entry, dict)]
        if len(named) != len(source):
            raise TokenizerError(f"{name}: the chat template is a list of other than named templates")
        source = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if source is None:
        return None
    if not isinstance(source, str):
        raise TokenizerError(f"{name}: the chat template is a {type(source).__name__}, expected a string")
    try:
        return ChatTemplate(source, special_texts)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"{name}: the chat template does not compile: {error}") from error


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders") or []
        return len(parts) == 1 and _is_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


def _byte_table(vocabulary: dict[str, int], size: int) -> tuple[bytes, ...]:
    """Each token's bytes. A token with a character outside GPT-2's byte alphabet stands for its own UTF-8."""
    alphabet = _byte_alphabet()
    table = [b""] * size
    for token, number in vocabulary.items():
        try:
            table[number] = bytes([alphabet[character] for character in token])
        except KeyError:
            table[number] = token.encode()
    return tuple(table)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, src/encoder.py: bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(others)}
