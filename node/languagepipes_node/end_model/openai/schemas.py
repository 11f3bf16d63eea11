"""What clients may send: bodies parsed, validated and refused by name. Nothing is accepted and ignored.

An explicit null counts as absent, as in OpenAI's API. A parameter of OpenAI's API, or a widespread extension of it,
that is not served is accepted with the value that asks for nothing (`_WITHOUT_EFFECT`) and refused with any other. The
JSON schemas of these models, which `/openapi.json` shows, say the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    model_validator,
)
from pydantic_core import CoreSchema

from languagepipes_node.end_model.openai import tool_schemas
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import (
    HINT,
    Strict,
    is_one_of,
    json_type,
    missing,
    shortened,
    unknown,
    unsupported,
    with_accepted,
    without_nulls,
    wrong_type,
)
from languagepipes_node.end_model.openai.message_schemas import Messages
from languagepipes_node.end_model.openai.structured_parameters import (
    AskedConstraint,
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputsField,
    only_one,
)
from languagepipes_node.end_model.reasoning.effort import Effort
from languagepipes_node.end_model.requests import LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY

MAX_CHOICES = 128
_MAX_STOPS = 64
_MAX_STOP_CHARACTERS = 512
MAX_STOP_CHARACTERS_IN_ALL = 8192
_MAX_STOP_TOKENS = 256
_MAX_METADATA = 16
MAX_CACHE_SALT = 512
_MAX_LOGIT_BIASES = 1024
_MAX_TEMPLATE_VARIABLES = 16

# Parameters that are not served, with the values that ask for nothing.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
}
_CHAT_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
}


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return with_accepted(handler.resolve_ref_schema(handler(schema)), {})


_Penalty = Annotated[float, Field(ge=-2, le=2)]
_LogitBias = Annotated[float, Field(ge=-100, le=100)]
_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
_TokenId = Annotated[int, Field(ge=0)]
_MODELS_DEFAULT = "Left out: what the model's generation_config.json says, or else what asks for nothing."


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
    if (size := sum(map(len, stops))) > MAX_STOP_CHARACTERS_IN_ALL:
        raise InvalidRequest(
            f"The strings of 'stop' have {size} characters together, at most {MAX_STOP_CHARACTERS_IN_ALL} are"
            " accepted.",
            param="stop",
        )
    return tuple(stops)


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """The `prompt` of a completion request: one or several, each text or token ids. Raises InvalidRequest."""
    if isinstance(value, str):
        return (value,)
    expected = "a string, a list of strings, a list of token ids or a list of such lists"
    if not isinstance(value, list):
        raise wrong_type("prompt", expected, value)
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


# How the two above are described: pydantic's own findings would not name the place of what is wrong.
_StopString = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
_Stop = _StopString | Annotated[list[_StopString], Field(max_length=_MAX_STOPS)]
_TextPrompt = Annotated[str, Field(min_length=1)]
_TokenPrompt = Annotated[list[_TokenId], Field(min_length=1)]
_Prompt = (
    _TextPrompt
    | Annotated[list[_TextPrompt], Field(min_length=1, max_length=MAX_CHOICES)]
    | _TokenPrompt
    | Annotated[list[_TokenPrompt], Field(min_length=1, max_length=MAX_CHOICES)]
)


Tools = Annotated[
    tuple[tool_schemas.Tool, ...], PlainValidator(tool_schemas.tools, json_schema_input_type=tool_schemas.ToolList)
]
TemplateVariables = Annotated[dict[str, str | int | float | bool], Field(max_length=_MAX_TEMPLATE_VARIABLES)]


class RequestBody(Strict):
    """A JSON body. without_effect: parameters that are not served, with the values that ask for nothing."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    depending: ClassVar[Mapping[str, str]] = {}  # allowed only where the other is true
    excluding: ClassVar[Mapping[str, str]] = {}  # allowed only where the other is not

    @model_validator(mode="before")
    @classmethod
    def _served_parameters(cls, fields: Any) -> Any:
        """The fields without those that ask for nothing. Raises InvalidRequest for one that is not served or known."""
        if not isinstance(fields, dict):
            return fields
        served = {}
        for name, value in fields.items():
            if name in cls.without_effect:
                if not is_one_of(value, cls.without_effect[name]):
                    raise UnsupportedParameter(unsupported(name, cls.without_effect[name]), param=name)
            elif name in cls.model_fields:
                served[name] = without_nulls(value) if isinstance(value, dict) else value
            else:
                raise unknown(name, set(cls.model_fields) | set(cls.without_effect))
        return served

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = with_accepted(handler.resolve_ref_schema(handler(schema)), cls.without_effect)
        on = {
            option: {"properties": {name: {"const": True}}, "required": [name]}
            for option, name in cls.depending.items()
        }
        off = {option: {"properties": {name: {"enum": [False, None]}}} for option, name in cls.excluding.items()}
        if on or off:
            described["dependentSchemas"] = {
                option: {"anyOf": [switch, {"properties": {option: {"type": "null"}}}]}
                for option, switch in (on | off).items()
            }
        return described


class _Generation(RequestBody):
    """What both routes take. Names, ranges and meaning are OpenAI's, or vLLM's where its reference has none."""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = _WITHOUT_EFFECT
    depending: ClassVar[Mapping[str, str]] = {"stream_options": "stream"}
    excluding: ClassVar[Mapping[str, str]] = {"prompt_logprobs": "stream"}

    # First, so that it is reported before what else is wrong.
    stop: Annotated[tuple[str, ...], PlainValidator(_stops, json_schema_input_type=_Stop)] = ()
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    temperature: float | None = Field(None, ge=0, le=2, description=_MODELS_DEFAULT)
    top_p: float | None = Field(None, ge=0, le=1, description=_MODELS_DEFAULT)
    top_k: int | None = Field(None, ge=-1, description=_MODELS_DEFAULT)
    min_p: float | None = Field(None, ge=0, le=1, description=_MODELS_DEFAULT)
    repetition_penalty: float | None = Field(
        None, ge=LEAST_REPETITION_PENALTY, le=MOST_REPETITION_PENALTY, description=_MODELS_DEFAULT
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: dict[str, _LogitBias] = Field(default_factory=dict, max_length=_MAX_LOGIT_BIASES)
    ignore_eos: bool = False
    stop_token_ids: list[_TokenId] = Field(default_factory=list, max_length=_MAX_STOP_TOKENS)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    return_token_ids: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    priority: int = Field(
        0,
        ge=-(2**31),
        le=2**31 - 1,
        description="Other values than 0 with spec.server.schedulingPolicy: priority alone.",
    )
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_CACHE_SALT)
    user: str | None = Field(None, description=HINT)
    metadata: dict[_MetadataKey, _MetadataValue] = Field(
        default_factory=dict, max_length=_MAX_METADATA, description=HINT
    )
    safety_identifier: str | None = Field(None, description=HINT)
    prompt_cache_key: str | None = Field(None, description=HINT)
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = Field(None, description=HINT)
    response_format: ResponseFormat = None
    structured_outputs: StructuredOutputsField = None
    guided_json: GuidedJson = None
    guided_regex: GuidedRegex = None
    guided_choice: GuidedChoice = None
    guided_grammar: GuidedGrammar = None

    @property
    def constraint(self) -> AskedConstraint | None:
        """What the answer must match, if anything. Raises InvalidRequest if that is said twice."""
        return only_one(
            self.response_format,
            self.structured_outputs,
            self.guided_json,
            self.guided_regex,
            self.guided_choice,
            self.guided_grammar,
        )


class ChatCompletionRequest(_Generation):
    """/v1/chat/completions"""

    without_effect = _WITHOUT_EFFECT | _CHAT_WITHOUT_EFFECT
    depending: ClassVar[Mapping[str, str]] = {"stream_options": "stream", "top_logprobs": "logprobs"}

    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description=HINT)
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    tools: Tools = ()
    tool_choice: Annotated[
        tool_schemas.ToolChoice | None,
        PlainValidator(tool_schemas.tool_choice, json_schema_input_type=tool_schemas.AnyToolChoice),
    ] = None
    parallel_tool_calls: bool = True
    reasoning_effort: Effort | None = None
    messages: Messages


class CompletionRequest(_Generation):
    """/v1/completions"""

    max_tokens: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=5)
    prompt: Annotated[tuple[str | tuple[int, ...], ...], PlainValidator(_prompts, json_schema_input_type=_Prompt)]


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
        raise InvalidRequest(f"The body is a JSON {json_type(value)}, expected an object.", code="invalid_type")
    return without_nulls(value)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
            param += f".{shortened(step)}" if param else shortened(step)
    if finding["type"] == "missing":
        return missing(param)
    if finding["type"] == "extra_forbidden":
        parent, _, name = param.rpartition(".")
        return unknown(name, set(StreamOptions.model_fields) - {name}, inside=parent or None)
    given = finding["input"]
    got = f", got {given!r}" if isinstance(given, int | float) else f", got a JSON {json_type(given)}"
    if isinstance(given, str | list | dict) and not finding["type"].endswith("_type"):
        got = ""
    reason = re.sub(r"^Input should be", "must be", finding["msg"])
    if finding["type"] == "model_attributes_type":
        reason = "must be a valid dictionary or instance of StreamOptions"  # the one object inside a body
    code = "invalid_type" if finding["type"].endswith("_type") else "invalid_value"
    return InvalidRequest(f"'{param}' {reason}{got}.", param=param, code=code)
