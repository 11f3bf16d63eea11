"""What clients may send: bodies parsed, validated and refused by name. Nothing is accepted and ignored.

An explicit null counts as absent, as in OpenAI's API. A parameter of OpenAI's API, or a widespread extension of it,
that is not served is accepted with the value that asks for nothing (`_WITHOUT_EFFECT`) and refused with any other. The
JSON schemas of these models, which `/openapi.json` shows, say the same.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    model_validator,
)
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter

MAX_CHOICES = 128
_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 512
_MAX_LOGIT_BIASES = 1024
_MAX_MESSAGES = 4096
_MAX_TEMPLATE_VARIABLES = 16

# Parameters that are not served, with the values that ask for nothing.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "metadata": ({},),
    "min_tokens": (0,),
    "repetition_penalty": (1, 1.0),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "structured_outputs": (),
    "suffix": ("",),
    "use_beam_search": (False,),
}
_CHAT_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_ROLES = ("system", "developer", "user", "assistant")
_UNSUPPORTED_ROLES = ("tool", "function")
# What answers carry besides their text, so that a client may send them back, with the values that say nothing.
_MESSAGE_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


@dataclass(frozen=True)
class ChatMessage:
    role: str
    content: str


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = False

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _with_accepted(handler.resolve_ref_schema(handler(schema)), {})


_Penalty = Annotated[float, Field(ge=-2, le=2)]
_LogitBias = Annotated[float, Field(ge=-100, le=100)]


def _stops(value: object) -> tuple[str, ...]:
    """The `stop` of a request: one string or several. Raises InvalidRequest."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest("'stop' must be a string or a list of strings.", param="stop", code="invalid_type")
    if len(stops) > _MAX_STOPS:
        raise InvalidRequest(f"'stop' holds {len(stops)} strings, at most {_MAX_STOPS} are accepted.", param="stop")
    for stop in stops:
        if not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"A string of 'stop' has {len(stop)} characters, expected 1 to {_MAX_STOP_CHARACTERS}.",
                param="stop",
            )
    return tuple(stops)


def _messages(value: object) -> tuple[ChatMessage, ...]:
    """The `messages` of a chat request. Raises InvalidRequest naming the part of the message that is wrong."""
    if not isinstance(value, list):
        raise _wrong_type("messages", "a list of messages", value)
    if not 1 <= len(value) <= _MAX_MESSAGES:
        raise InvalidRequest(
            f"'messages' holds {len(value)} messages, expected 1 to {_MAX_MESSAGES}.", param="messages"
        )
    return tuple(_message(message, f"messages[{place}]") for place, message in enumerate(value))


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """The `prompt` of a completion request: one or several, each text or token ids. Raises InvalidRequest."""
    if isinstance(value, str):
        return (value,)
    expected = "a string, a list of strings, a list of token ids or a list of such lists"
    if not isinstance(value, list):
        raise _wrong_type("prompt", expected, value)
    if not value:
        raise InvalidRequest(f"'prompt' is empty, expected {expected}.", param="prompt")
    if all(_is_token(token) for token in value):
        return (tuple(value),)
    if len(value) > MAX_CHOICES:
        raise InvalidRequest(
            f"'prompt' holds {len(value)} prompts, at most {MAX_CHOICES} are accepted.", param="prompt"
        )
    if all(isinstance(text, str) for text in value):
        return tuple(value)
    if all(isinstance(tokens, list) and tokens and all(map(_is_token, tokens)) for tokens in value):
        return tuple(map(tuple, value))
    raise InvalidRequest(
        f"'prompt' must be {expected}, none of them empty or mixed.", param="prompt", code="invalid_type"
    )


# How the three above are described: pydantic's own findings would not name the place of what is wrong.
_StopString = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
_Stop = _StopString | Annotated[list[_StopString], Field(max_length=_MAX_STOPS)]
_TextPrompt = Annotated[str, Field(min_length=1)]
_TokenId = Annotated[int, Field(ge=0)]
_TokenPrompt = Annotated[list[_TokenId], Field(min_length=1)]
_Prompt = (
    _TextPrompt
    | Annotated[list[_TextPrompt], Field(min_length=1, max_length=MAX_CHOICES)]
    | _TokenPrompt
    | Annotated[list[_TokenPrompt], Field(min_length=1, max_length=MAX_CHOICES)]
)


class TextPart(_Strict):
    """A part of a message's content. Only text is served."""

    type: Literal["text"]
    text: str

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _with_accepted(handler.resolve_ref_schema(handler(schema)), {})


class Message(_Strict):
    """A message of a chat. Several text parts are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return _with_accepted(handler.resolve_ref_schema(handler(schema)), _MESSAGE_WITHOUT_EFFECT)


class _Generation(_Strict):
    """What both routes take. Names, ranges and defaults are OpenAI's; top_k, min_p and ignore_eos are vLLM's."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = _WITHOUT_EFFECT
    depending: ClassVar[Mapping[str, str]] = {"stream_options": "stream"}  # allowed only where the other is true

    # First, so that it is reported before what else is wrong.
    stop: Annotated[tuple[str, ...], PlainValidator(_stops, json_schema_input_type=_Stop)] = ()
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: dict[str, _LogitBias] = Field(default_factory=dict, max_length=_MAX_LOGIT_BIASES)
    ignore_eos: bool = False
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _served_parameters(cls, fields: Any) -> Any:
        """The fields without those that ask for nothing. Raises InvalidRequest for one that is not served or known."""
        if not isinstance(fields, dict):
            return fields
        served = {}
        for name, value in fields.items():
            if name in cls.without_effect:
                if not _is_one_of(value, cls.without_effect[name]):
                    raise UnsupportedParameter(_unsupported(name, cls.without_effect[name]), param=name)
            elif name in cls.model_fields:
                served[name] = _without_nulls(value) if isinstance(value, dict) else value
            else:
                raise _unknown(name, set(cls.model_fields) | set(cls.without_effect))
        return served

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = _with_accepted(handler.resolve_ref_schema(handler(schema)), cls.without_effect)
        described["dependentSchemas"] = {
            option: {
                "anyOf": [
                    {"properties": {switch: {"const": True}}, "required": [switch]},
                    {"properties": {option: {"type": "null"}}},
                ]
            }
            for option, switch in cls.depending.items()
        }
        return described


class ChatCompletionRequest(_Generation):
    """/v1/chat/completions"""

    without_effect = _WITHOUT_EFFECT | _CHAT_WITHOUT_EFFECT
    depending = {"stream_options": "stream", "top_logprobs": "logprobs"}

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, str | int | float | bool] = Field(
        default_factory=dict, max_length=_MAX_TEMPLATE_VARIABLES
    )
    messages: Annotated[
        tuple[ChatMessage, ...],
        PlainValidator(
            _messages,
            json_schema_input_type=Annotated[list[Message], Field(min_length=1, max_length=_MAX_MESSAGES)],
        ),
    ]


class CompletionRequest(_Generation):
    """/v1/completions"""

    logprobs: int | None = Field(None, ge=0, le=5)
    prompt: Annotated[tuple[str | tuple[int, ...], ...], PlainValidator(_prompts, json_schema_input_type=_Prompt)]


def _with_accepted(schema: dict[str, Any], without_effect: Mapping[str, tuple[object, ...]]) -> dict[str, Any]:
    """The schema of an object with all that is accepted: null for what may be absent, and what asks for nothing."""
    properties = schema["properties"]
    for name, field in properties.items():
        if "additionalProperties" in field:
            field["additionalProperties"] = _or_null(field["additionalProperties"])
        if name not in schema.get("required", []):
            properties[name] = _or_null(field)
    for name, accepted in without_effect.items():
        distinct = [value for place, value in enumerate(accepted) if value not in accepted[:place]]
        properties[name] = {
            "title": name.replace("_", " ").title(),
            "description": "Not served: accepted with the values that ask for nothing.",
            "enum": [*distinct, None],
        }
    schema["additionalProperties"] = {"type": "null"}
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in schema.get("anyOf", []):
        return schema
    shown: dict[str, Any] = {key: schema.pop(key) for key in ("title", "default", "description") if key in schema}
    alternatives = schema.get("anyOf", [schema])
    return {"anyOf": [*alternatives, null], **shown}


def parse_json(body: bytes) -> dict[str, Any]:
    """A request's body as a JSON object without its nulls. Raises InvalidRequest."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is no valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
            code="invalid_json",
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body is a JSON {_json_type(value)}, expected an object.", code="invalid_type")
    return _without_nulls(value)


def _message(value: object, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise _wrong_type(where, "a message object", value)
    message = _without_nulls(value)
    role = message.pop("role", None)
    if role is None:
        raise _missing(f"{where}.role")
    if role in _UNSUPPORTED_ROLES:
        raise UnsupportedParameter(
            f"Messages of role '{role}' are not supported, since this server calls no tools.",
            param=f"{where}.role",
        )
    if role not in _ROLES:
        raise InvalidRequest(f"'{where}.role' must be one of {', '.join(_ROLES)}.", param=f"{where}.role")
    content = message.pop("content", None)
    for name, rest in message.items():
        if name not in _MESSAGE_WITHOUT_EFFECT:
            raise _unknown(name, {"role", "content", *_MESSAGE_WITHOUT_EFFECT}, inside=where)
        if not _is_one_of(rest, _MESSAGE_WITHOUT_EFFECT[name]):
            raise UnsupportedParameter(
                f"'{name}' of a message is not supported by this server.", param=f"{where}.{name}"
            )
    if content is None:
        raise _missing(f"{where}.content")
    return ChatMessage(role, _content(content, f"{where}.content"))


def _content(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong_type(where, "a string or a list of text parts", value)
    if not value:
        raise InvalidRequest(f"'{where}' is empty, expected a string or at least one text part.", param=where)
    return "\n".join(_text_part(part, f"{where}[{place}]") for place, part in enumerate(value))


def _text_part(value: object, where: str) -> str:
    if not isinstance(value, dict):
        raise _wrong_type(where, "a content part object", value)
    part = _without_nulls(value)
    kind = part.pop("type", None)
    if kind is None:
        raise _missing(f"{where}.type")
    if not isinstance(kind, str):
        raise _wrong_type(f"{where}.type", "a string", kind)
    if kind != "text":
        raise UnsupportedParameter(
            f"Content parts of type '{_shortened(kind)}' are not supported by this server, only 'text'.",
            param=f"{where}.type",
        )
    text = part.pop("text", None)
    if text is None:
        raise _missing(f"{where}.text")
    if not isinstance(text, str):
        raise _wrong_type(f"{where}.text", "a string", text)
    for name in part:
        raise _unknown(name, {"type", "text"}, inside=where)
    return text


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: field for name, field in value.items() if field is not None}


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one_of(value: object, accepted: Sequence[object]) -> bool:
    # True == 1 in Python, not in JSON.
    return any(type(value) is type(candidate) and value == candidate for candidate in accepted)


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _shortened(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "…"


def _missing(param: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _wrong_type(param: str, expected: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"'{param}' is a JSON {_json_type(value)}, expected {expected}.", param=param, code="invalid_type"
    )


def _unsupported(name: str, accepted: tuple[object, ...]) -> str:
    if not accepted:
        return f"The parameter '{name}' is not supported by this server: leave it out."
    values = " or ".join(orjson.dumps(value).decode() for value in accepted)
    return f"The parameter '{name}' is not supported by this server: leave it out, or send {values}."


def _unknown(name: str, known: set[str], *, inside: str | None = None) -> InvalidRequest:
    param = f"{inside}.{_shortened(name)}" if inside else _shortened(name)
    close = difflib.get_close_matches(name[:64], sorted(known), n=1, cutoff=0.6)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return InvalidRequest(f"Unknown parameter: '{param}'.{hint}", param=param, code="unknown_parameter")


def refusal(finding: Mapping[str, Any]) -> InvalidRequest:
    """One of pydantic's findings in a body, as FastAPI hands it on, as a client should read it."""
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, InvalidRequest):
        return cause
    param = ""
    for step in finding["loc"][1:]:  # the first is "body"
        if isinstance(step, int):
            param += f"[{step}]"
        elif param and step in ("str", "int", "float", "bool"):
            break  # which member of a union was tried says nothing to a client
        else:
            param += f".{_shortened(step)}" if param else _shortened(step)
    if finding["type"] == "missing":
        return _missing(param)
    if finding["type"] == "extra_forbidden":
        parent, _, name = param.rpartition(".")
        return _unknown(name, set(StreamOptions.model_fields), inside=parent or None)
    given = finding["input"]
    got = f", got {given!r}" if isinstance(given, int | float) else f", got a JSON {_json_type(given)}"
    if isinstance(given, str | list | dict) and not finding["type"].endswith("_type"):
        got = ""
    reason = re.sub(r"^Input should be", "must be", finding["msg"])
    if finding["type"] == "model_attributes_type":
        reason = "must be a valid dictionary or instance of StreamOptions"  # the one object inside a body
    code = "invalid_type" if finding["type"].endswith("_type") else "invalid_value"
    return InvalidRequest(f"'{param}' {reason}{got}.", param=param, code=code)
