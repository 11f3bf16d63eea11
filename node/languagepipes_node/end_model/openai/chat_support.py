"""What one model's chat template knows of tools and thinking, and what a chat may therefore ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from languagepipes_node.end_model.openai.errors import InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.structured_parameters import AskedConstraint
from languagepipes_node.end_model.openai.tool_schemas import Tool, ToolChoice
from languagepipes_node.end_model.reasoning import effort as efforts
from languagepipes_node.end_model.reasoning import splitter
from languagepipes_node.end_model.reasoning.reader import ThinkingThenCalls
from languagepipes_node.end_model.structured import ConstraintError
from languagepipes_node.end_model.tools import families, template
from languagepipes_node.end_model.tools.constraint import (
    AnswerShape,
    CalledTool,
    ToolConstraintError,
    constraint_for,
)
from languagepipes_node.end_model.tools.families import FAMILIES, Family
from languagepipes_node.end_model.tools.parser import AnswerReader

if TYPE_CHECKING:
    from languagepipes_node.end_model.openai.message_schemas import ChatMessage
    from languagepipes_node.end_model.openai.schemas import ChatCompletionRequest
    from languagepipes_node.end_model.text import TextCodec


@dataclass(frozen=True)
class Offer:
    """The tools that a request's answer may call, with their places in the request. required: it must call one. single:
    one call at most."""

    tools: Sequence[Tool]
    places: Sequence[int]
    required: bool
    single: bool
    param: str

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return {tool.name: tool.parameters for tool in self.tools}


@dataclass(frozen=True)
class ChatSupport:
    """family: the format of the model's calls; None: not known. harmony: all of its answers are in that format. marks:
    what its thinking stands between, if it thinks. variables: those that its template reads. special_ids: special
    tokens that its answers are read by; call_ids: those that its calls are. shape: how its answers are written.
    """

    template: template.TemplateTools
    family: Family | None
    harmony: bool
    marks: splitter.Marks | None
    variables: frozenset[str]
    special_ids: frozenset[int]
    call_ids: frozenset[int]
    shape: AnswerShape

    @classmethod
    def of(cls, codec: TextCodec, tool_parser: str = "auto") -> ChatSupport:
        """Renders the template a few times. tool_parser: a name in FAMILIES, or "auto"."""
        if codec.template is None:
            none: frozenset[Any] = frozenset()
            return cls(template.TemplateTools(), None, False, None, none, none, none, AnswerShape(None, {}, ""))
        source = codec.template.source
        found = families.detect(source)
        name = found if tool_parser == "auto" else tool_parser
        family = FAMILIES[name] if name is not None else None
        harmony = found == name == "harmony"
        marks = None if harmony else splitter.detect(source)
        return cls(
            template=template.probe(codec.template, name),
            family=family,
            harmony=harmony,
            marks=marks,
            variables=codec.template.variables,
            special_ids=codec.special_ids(FAMILIES["harmony"].markers if harmony else marks or ()),
            call_ids=codec.special_ids(family.markers if family is not None else ()),
            shape=AnswerShape(
                name,
                codec.special_tokens({*(family.markers if family is not None else ()), *(marks or ())}),
                source,
                harmony=harmony,
                marks=marks,
            ),
        )

    @property
    def thinks(self) -> bool:
        return self.harmony or self.marks is not None

    @property
    def takes_tools(self) -> bool:
        return self.template.takes_tools and self.family is not None and self.template.shows_calls

    @property
    def efforts(self) -> list[efforts.Effort]:
        """The values of `reasoning_effort` that are not refused."""
        return efforts.accepted(self.variables, thinks=self.thinks)

    def offer(self, request: ChatCompletionRequest) -> Offer | None:
        """Raises InvalidRequest if the tools cannot be offered, or the choice among them cannot be kept."""
        choice = request.tool_choice or ToolChoice()
        if not request.tools:
            if choice.mode == "required" or choice.names is not None:
                raise InvalidRequest(
                    "'tool_choice' asks for a call of a tool, and there are no 'tools': send some.", param="tool_choice"
                )
            return None
        if not self.template.takes_tools:
            remedy = "serve a model whose template knows tools"
            if self.template.shows_calls:
                remedy = (
                    "put a chat_template.jinja that writes them beside the model's files (this one writes calls alone)"
                )
            raise UnsupportedParameter(
                "'tools' are not supported by this model: its chat template leaves them out. Leave them out too, or "
                f"{remedy}.",
                param="tools",
            )
        if self.family is None:
            raise UnsupportedParameter(
                "'tools' are not supported by this server for this model: the format of its calls is not known. Name "
                f"it in spec.model.toolParser ({', '.join(FAMILIES)}).",
                param="tools",
            )
        if not self.template.shows_calls:
            raise UnsupportedParameter(
                "'tools' are not supported by this model: its chat template writes them, and leaves out calls and "
                "their results. Leave them out, or serve a model whose template writes calls.",
                param="tools",
            )
        known = {tool.name: tool for tool in request.tools}
        for place, name in enumerate(choice.names or ()):
            if name not in known:
                param = f"{choice.param}[{place}].function.name" if choice.param.endswith("tools") else choice.param
                raise InvalidRequest(f"'{param}' is '{name}', which is none of the 'tools'.", param=param)
        if choice.mode == "none":
            return None
        names = list(dict.fromkeys(choice.names)) if choice.names is not None else list(known)
        places = {tool.name: place for place, tool in enumerate(request.tools)}
        return Offer(
            [known[name] for name in names],
            [places[name] for name in names],
            required=choice.mode == "required",
            single=choice.named or not request.parallel_tool_calls,
            param=choice.param,
        )

    def constraint(
        self,
        offer: Offer | None,
        asked: AskedConstraint | None,
        *,
        inside: bool,
        loose: frozenset[int] = frozenset(),
    ) -> AskedConstraint | None:
        """What the whole answer must match. asked: what its content must. inside: it begins within thinking. loose:
        places of tools whose arguments need not match their schemas. Raises InvalidRequest and
        UnsupportedParameter for what cannot be kept."""
        content = asked.constraint if asked is not None else None
        required = offer is not None and offer.required
        tools: list[CalledTool] = []
        if offer is not None:
            tools = [
                CalledTool(
                    place,
                    tool.name,
                    tool.parameters,
                    held=(required or tool.strict) and place not in loose,
                    strict=tool.strict,
                )
                for tool, place in zip(offer.tools, offer.places, strict=True)
            ]
        param = asked.param if asked is not None and content is not None else "tools"
        if offer is not None and required:
            param = offer.param
        try:
            whole = constraint_for(
                replace(self.shape, inside=inside),
                tools,
                mode="required" if required else "auto",
                single=offer is not None and offer.single,
                content=content,
            )
        except ToolConstraintError as error:
            raise AskedConstraint(None, f"tools[{error.place}].function.parameters").refusal(error) from None
        except ConstraintError as error:
            raise AskedConstraint(None, param).refusal(error) from None
        return None if whole is None else AskedConstraint(whole, param)

    def template_variables(self, request: ChatCompletionRequest) -> dict[str, Any]:
        """`chat_template_kwargs` and what `reasoning_effort` means for the template. Raises InvalidRequest."""
        effort = request.reasoning_effort
        if effort is None:
            return request.chat_template_kwargs
        meant = efforts.template_variables(effort, self.variables, thinks=self.thinks)
        if meant is None:
            known = self.efforts
            remedy = f"send one of {', '.join(known)}" if known else "leave it out"
            raise UnsupportedParameter(
                f"'reasoning_effort' '{effort}' is not known to the model's chat template: {remedy}.",
                param="reasoning_effort",
            )
        for name, value in meant.items():
            if request.chat_template_kwargs.get(name, value) != value:
                raise InvalidRequest(
                    f"'reasoning_effort' '{effort}' and 'chat_template_kwargs.{name}' say different things: send one "
                    "of them.",
                    param="reasoning_effort",
                )
        return {**request.chat_template_kwargs, **meant}

    def messages(self, messages: Sequence[ChatMessage], *, developer: str) -> list[dict[str, Any]]:
        """As the template wants them. developer: the role that it knows for OpenAI's developers. Raises
        UnsupportedParameter for calls and results that it leaves out."""
        plain = []
        for place, message in enumerate(messages):
            if (message.calls or message.call_id is not None) and not self.template.shows_calls:
                raise UnsupportedParameter(
                    "The model's chat template leaves out calls of tools and their results.", param=f"messages[{place}]"
                )
            fields: dict[str, Any] = {
                "role": developer if message.role == "developer" else message.role,
                "content": message.content,
            }
            if message.reasoning:
                fields["reasoning"] = message.reasoning
            if message.calls:
                fields["tool_calls"] = [call.as_given() for call in message.calls]
            if message.call_id is not None:
                fields["tool_call_id"] = message.call_id
            plain.append(fields)
        return self.template.messages(plain)

    def special(self, offer: Offer | None) -> frozenset[int]:
        """Special tokens that an answer's reader must see the text of."""
        return self.special_ids if offer is None else self.special_ids | self.call_ids

    def opens_thinking(self, prompt: str) -> bool:
        """Whether an answer to `prompt`, the rendered text, begins within thinking."""
        return self.marks is not None and splitter.opens(prompt, self.marks)

    def reader(self, offer: Offer | None, *, inside: bool) -> partial[AnswerReader] | None:
        """Makes a reader of an answer; None: all of it is content. inside: it begins within thinking."""
        if self.marks is None and offer is None and not self.harmony:
            return None
        return partial(self._reader, offer, inside)

    def _reader(self, offer: Offer | None, inside: bool) -> AnswerReader:
        parser: AnswerReader | None = None
        if self.harmony:
            return FAMILIES["harmony"].make(
                offer.parameters if offer else {}, single=offer is not None and offer.single
            )
        if offer is not None and self.family is not None:
            parser = self.family.make(offer.parameters, single=offer.single)
        if self.marks is None:
            assert parser is not None  # noqa: S101 (see above)
            return parser
        thinking = splitter.ThinkingSplitter(self.marks, inside=inside)
        return thinking if parser is None else ThinkingThenCalls(thinking, parser)
