"""What clients may send to /v1/messages and /v1/messages/count_tokens, and the chat that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator

from languagepipes_node.end_model.openai import tool_schemas
from languagepipes_node.end_model.openai.chat_support import ChatSupport
from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import HINT, shortened, wrong_type
from languagepipes_node.end_model.openai.message_schemas import ChatMessage
from languagepipes_node.end_model.openai.messages import described
from languagepipes_node.end_model.openai.messages.blocks import (
    read_messages,
    read_system,
    take_hint,
)
from languagepipes_node.end_model.openai.reading import Fields, items_of, params_renamed
from languagepipes_node.end_model.openai.schemas import MAX_STOP_CHARACTERS_IN_ALL, ChatCompletionRequest, RequestBody
from languagepipes_node.end_model.openai.structured_parameters import AskedConstraint
from languagepipes_node.end_model.openai.turns import PlacedMessage
from languagepipes_node.end_model.reasoning.effort import Effort
from languagepipes_node.end_model.structured import Constraint

_LEAST_BUDGET = 1024
_EFFORTS: dict[str, Effort] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
_DISPLAYS = ("summarized", "omitted")

_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "fallbacks": ([],),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
    "thread": (),
    "user_profile_id": (),
    "workspace_id": (),
}


@dataclass(frozen=True)
class AskedThinking:
    """wanted: whether the model is to think; None: as it does of itself. shown: whether its thinking is."""

    wanted: bool | None = None
    budget: int | None = None
    shown: bool = True


@dataclass(frozen=True)
class CallChoice:
    choice: tool_schemas.ToolChoice
    single: bool = False


@dataclass(frozen=True)
class AskedOutput:
    effort: Effort | None = None
    constraint: AskedConstraint | None = None


def _tools(value: object) -> tuple[tool_schemas.Tool, ...]:
    given = items_of(value, "tools", "a list of tools", most=tool_schemas.MAX_TOOLS)
    nested = []
    for place, tool in enumerate(given):
        fields = Fields(tool, f"tools[{place}]")
        if (kind := fields.text("type", "custom")) != "custom":
            raise UnsupportedParameter(
                f"Tools of type '{shortened(kind)}' are not supported by this server, only 'custom'.",
                param=f"tools[{place}].type",
            )
        function = {"name": fields.take("name"), "parameters": fields.take("input_schema")}
        function |= {name: fields.take(name, None) for name in ("description", "strict")}
        take_hint(fields, "cache_control")
        fields.boolean("eager_input_streaming", False)
        fields.without_effect("defer_loading", False)
        fields.without_effect("input_examples", [])
        fields.without_effect("allowed_callers", ["direct"], [])
        fields.no_more()
        nested.append({"type": "function", "function": function})
    with params_renamed(own_param):
        return tool_schemas.tools(nested)


def _tool_choice(value: object) -> CallChoice:
    fields = Fields(value, "tool_choice")
    kind = fields.one_of("type", ("auto", "any", "tool", "none"))
    name = fields.take("name") if kind == "tool" else None
    single = fields.boolean("disable_parallel_tool_use", False) if kind != "none" else False
    fields.no_more()
    if kind == "tool":
        with params_renamed(own_param):
            named = {"type": "function", "function": {"name": name}}
            return CallChoice(tool_schemas.tool_choice(named), single)
    return CallChoice(tool_schemas.tool_choice("required" if kind == "any" else kind), single)


def _thinking(value: object) -> AskedThinking:
    fields = Fields(value, "thinking")
    kind = fields.one_of("type", ("enabled", "disabled", "adaptive"))
    if kind == "disabled":
        fields.no_more()
        return AskedThinking(wanted=False)
    shown = fields.one_of("display", _DISPLAYS, "summarized") != "omitted"
    budget = None
    if kind == "enabled":
        budget = fields.take("budget_tokens")
        if not isinstance(budget, int) or isinstance(budget, bool):
            raise wrong_type("thinking.budget_tokens", "an integer", budget)
        if budget < _LEAST_BUDGET:
            raise InvalidRequest(
                f"'thinking.budget_tokens' is {budget}, expected at least {_LEAST_BUDGET}.",
                param="thinking.budget_tokens",
            )
    fields.no_more()
    return AskedThinking(True if kind == "enabled" else None, budget, shown)


def _output_config(value: object) -> AskedOutput:
    fields = Fields(value, "output_config")
    effort = fields.one_of("effort", tuple(_EFFORTS), None)
    given = fields.take("format", None)
    fields.no_more()
    constraint = None
    if given is not None:
        format = Fields(given, "output_config.format")
        format.one_of("type", ("json_schema",))
        schema = format.of(dict, "a JSON Schema object", "schema")
        format.no_more()
        constraint = AskedConstraint(Constraint.json_schema(schema), "output_config.format.schema")
    return AskedOutput(None if effort is None else _EFFORTS[effort], constraint)


def _stop_sequences(value: object) -> tuple[str, ...]:
    stops = items_of(value, "stop_sequences", "a list of strings", most=64)
    for place, stop in enumerate(stops):
        where = f"stop_sequences[{place}]"
        if not isinstance(stop, str):
            raise wrong_type(where, "a string", stop)
        if not 1 <= len(stop) <= 512:
            raise InvalidRequest(f"'{where}' has {len(stop)} characters, expected 1 to 512.", param=where)
    if (size := sum(map(len, stops))) > MAX_STOP_CHARACTERS_IN_ALL:
        raise InvalidRequest(
            f"The strings of 'stop_sequences' have {size} characters together, at most {MAX_STOP_CHARACTERS_IN_ALL} are"
            " accepted.",
            param="stop_sequences",
        )
    return tuple(stops)


def _metadata(value: object) -> None:
    fields = Fields(value, "metadata")
    fields.text("user_id", None, most=256)
    fields.no_more()


def _hint(value: object) -> None:
    if not isinstance(value, dict):
        raise wrong_type("cache_control", "an object", value)


def own_param(name: str) -> str:
    """A parameter of chats by its name here."""
    if name.startswith("tools["):
        return name.replace(".function.parameters", ".input_schema").replace(".function.", ".")
    if name.startswith("tool_choice."):
        return name.replace(".function.", ".")
    return {
        "max_completion_tokens": "max_tokens",
        "reasoning_effort": "output_config.effort",
        "stop": "stop_sequences",
    }.get(name, name)


class CountTokensRequest(RequestBody):
    """/v1/messages/count_tokens"""

    without_effect: ClassVar[Mapping[str, tuple[object, ...]]] = _WITHOUT_EFFECT

    model: str
    messages: Annotated[
        tuple[PlacedMessage, ...], PlainValidator(read_messages, json_schema_input_type=described.Messages)
    ]
    system: Annotated[str, PlainValidator(read_system, json_schema_input_type=described.System)] = ""
    tools: Annotated[
        tuple[tool_schemas.Tool, ...], PlainValidator(_tools, json_schema_input_type=described.ToolList)
    ] = ()
    tool_choice: Annotated[
        CallChoice | None, PlainValidator(_tool_choice, json_schema_input_type=described.AnyToolChoice)
    ] = None
    thinking: Annotated[AskedThinking, PlainValidator(_thinking, json_schema_input_type=described.Thinking)] = Field(
        default_factory=AskedThinking
    )
    output_config: Annotated[
        AskedOutput, PlainValidator(_output_config, json_schema_input_type=described.OutputConfig)
    ] = Field(default_factory=AskedOutput)
    cache_control: Annotated[None, PlainValidator(_hint, json_schema_input_type=dict[str, Any] | None)] = Field(
        None, description=HINT
    )

    def chat(self, model: str, support: ChatSupport) -> ChatCompletionRequest:
        """The chat that is asked for. Its fields are checked already. Raises UnsupportedParameter for thinking that the
        model cannot be asked for."""
        return ChatCompletionRequest.model_construct(**self._asked(model, support))

    def _asked(self, model: str, support: ChatSupport) -> dict[str, Any]:
        messages = tuple(one.message for one in self.messages)
        if self.system:
            messages = (ChatMessage("system", self.system), *messages)
        asked: dict[str, Any] = {"model": model, "messages": messages, "tools": self.tools}
        if self.tool_choice is not None:
            asked |= {"tool_choice": self.tool_choice.choice, "parallel_tool_calls": not self.tool_choice.single}
        if self.output_config.constraint is not None:
            asked["response_format"] = self.output_config.constraint
        effort = self._effort(support)
        return asked if effort is None else {**asked, "reasoning_effort": effort}

    def _effort(self, support: ChatSupport) -> Effort | None:
        """As `reasoning_effort` of chats; None: as the model does of itself."""
        wanted = self.thinking.wanted
        if wanted is None:
            return self.output_config.effort
        known = support.efforts
        if not wanted:
            if "none" not in known:
                raise UnsupportedParameter(
                    "'thinking.type' 'disabled' is not supported by this model: it always thinks.",
                    param="thinking.type",
                )
            return "none"
        if not support.thinks:
            raise UnsupportedParameter(
                "'thinking.type' 'enabled' is not supported by this model: it does not think. Leave 'thinking' out.",
                param="thinking.type",
            )
        # A model that always thinks needs not be told.
        return self.output_config.effort or ("high" if "high" in known else None)

    @property
    def places(self) -> list[str]:
        """Where each of the chat's messages came from."""
        return [*(["system"] if self.system else []), *(one.where for one in self.messages)]


class MessagesRequest(CountTokensRequest):
    """/v1/messages"""

    max_tokens: int = Field(ge=1)
    stream: bool = False
    stop_sequences: Annotated[
        tuple[str, ...], PlainValidator(_stop_sequences, json_schema_input_type=described.StopSequences)
    ] = ()
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    metadata: Annotated[None, PlainValidator(_metadata, json_schema_input_type=described.Metadata)] = Field(
        None, description=HINT
    )

    def _asked(self, model: str, support: ChatSupport) -> dict[str, Any]:
        budget = self.thinking.budget
        if budget is not None and budget >= self.max_tokens:
            raise InvalidRequest(
                f"'max_tokens' is {self.max_tokens}, expected more than 'thinking.budget_tokens', which is {budget}.",
                param="max_tokens",
            )
        asked = super()._asked(model, support)
        asked |= {"max_completion_tokens": self.max_tokens, "stop": self.stop_sequences, "stream": self.stream}
        optional = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return asked | {name: value for name, value in optional.items() if value is not None}
