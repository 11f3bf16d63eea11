"""A model's chat template: loaded from its files, and rendered in a sandbox. It knows no tokens."""

from __future__ import annotations

import datetime
import functools
import json
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from languagepipes_node.end_model.text.errors import TemplateError, TokenizerError
from languagepipes_node.end_model.text.model_files import Files, json_object, optional_file

_PROBE = "content of the message"
_RENDER_SECONDS = 2.0
_MAX_TEMPLATE_CHARACTERS = 1 << 20
_RENDERED_CHARACTERS_PER_INPUT_CHARACTER = 4
_RENDERED_CHARACTERS_EXTRA = 1 << 18


def load_chat_template(files: Files, config: dict[str, Any], special_texts: dict[str, str]) -> ChatTemplate | None:
    """In transformers' order: chat_template.jinja, then chat_template.json, then the tokenizer's configuration."""
    name = "chat_template.jinja"
    raw = optional_file(files, name)
    source: Any = None
    if raw is not None:
        try:
            source = raw.decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{name} is no UTF-8: {error}") from error
    if source is None:
        name = "chat_template.json"
        source = json_object(files, name).get("chat_template")
    if source is None:
        name = "tokenizer_config.json"
        source = config.get("chat_template")
    with_tools: Any = None
    if isinstance(source, list):  # several, by name
        named = [entry for entry in source if isinstance(entry, dict)]
        if len(named) != len(source):
            raise TokenizerError(f"{name}: the chat template is a list of other than named templates")
        by_name = {entry.get("name"): entry.get("template") for entry in named}
        with_tools = by_name.get("tool_use")
        source = by_name.get("default", with_tools)
    if source is None:
        return None
    for text in (source, with_tools):
        if text is not None and not isinstance(text, str):
            raise TokenizerError(f"{name}: the chat template is a {type(text).__name__}, expected a string")
    try:
        tool_use = None if with_tools in (None, source) else ChatTemplate(with_tools, special_texts)
        return ChatTemplate(source, special_texts, tool_use)
    except jinja2.TemplateError as error:
        raise TokenizerError(f"{name}: the chat template does not compile: {error}") from error


class ChatTemplate:
    """A model's Jinja chat template, in a sandbox, with what transformers offers templates beside plain Jinja.

    Model files are not trusted to be kind: no attribute that starts with an underscore, no change to what is passed
    in, and an end to the time and the text that one rendering takes.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], tool_use: ChatTemplate | None = None) -> None:
        """tool_use: another one of the same model, for chats with tools. Raises jinja2.TemplateError if `source` does
        not compile."""
        if len(source) > _MAX_TEMPLATE_CHARACTERS:
            raise jinja2.TemplateError(
                f"it has {len(source)} characters, at most {_MAX_TEMPLATE_CHARACTERS} are accepted"
            )
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _GenerationTag]
        )
        self.render_seconds = _RENDER_SECONDS  # the most that one rendering takes
        self._template = environment.from_string(source)
        self._special_tokens = dict(special_tokens)
        parsed = environment.parse(source)
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(parsed))
        literals = [node.value for node in parsed.find_all(jinja2.nodes.Const) if isinstance(node.value, str)]
        self.knows_developer_role = "developer" in literals
        self.source = source  # of both, where there are two
        self._tool_use = tool_use
        if tool_use is not None:
            self.source = f"{tool_use.source}\n{source}"
            self.variables |= tool_use.variables
            self.knows_developer_role = self.knows_developer_role and tool_use.knows_developer_role

    @functools.cached_property
    def wants_parts(self) -> bool:
        """Whether a message's content has to be a list of parts, since a string's text is lost (so templates of models
        that see images). Found out by trying: templates look at it in many ways."""
        return not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])

    def _shows(self, content: object) -> bool:
        try:
            return _PROBE in self._render([{"role": "user", "content": content}], {}, None)
        except TemplateError:
            return False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """messages: their contents are strings or left out. tools: as in a request. Raises TemplateError with the
        template's own message, or with what is wrong with it."""
        calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        if self._tool_use is not None and (tools or calls):
            return self._tool_use.render(messages, variables, tools)
        if self.wants_parts:
            messages = [_in_parts(message) for message in messages]
        return self._render(messages, variables, tools)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> str:
        names = {**self._special_tokens, **variables}
        names |= {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
        pieces: list[str] = []
        size = 0
        token = _deadline.set(_Deadline.after(self.render_seconds))
        try:
            given = _characters(messages) + _characters(tools or ())
            limit = _RENDERED_CHARACTERS_PER_INPUT_CHARACTER * given + _RENDERED_CHARACTERS_EXTRA
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
            reason = str(error) if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise TemplateError(f"the model's chat template refused the messages: {reason}") from error
        finally:
            _deadline.reset(token)
        return "".join(pieces)


def _characters(value: Any) -> int:
    """All text in it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(name)) + _characters(inner) for name, inner in value.items())
    if isinstance(value, Sequence):
        return sum(map(_characters, value))
    return 8


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


@dataclass(frozen=True)
class _Deadline:
    """Of one rendering, on the clock of time.monotonic()."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> _Deadline:
        return cls(time.monotonic() + seconds, seconds)


_deadline: ContextVar[_Deadline | None] = ContextVar("chat_template_deadline", default=None)


def _check_deadline() -> None:
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline.at:
        raise TemplateError(f"the model's chat template took longer than {deadline.seconds:g} s")


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
