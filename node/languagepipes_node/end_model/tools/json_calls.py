"""Formats whose calls are JSON objects of a name and arguments: Hermes and Qwen, Llama 3, Mistral."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Generator

from languagepipes_node.end_model.tools.arguments import MAX_CALLS
from languagepipes_node.end_model.tools.parser import ToolParser

_ALPHANUMERIC = string.ascii_letters + string.digits
_NAME = re.compile(r"[\w.-]{1,64}")  # longer ones are no tools; what is looked at anew with each piece has an end


class HermesParser(ToolParser):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`
    (https://github.com/NousResearch/Hermes-Function-Calling); Qwen 2.5 and Qwen 3 too."""

    starts = ("<tool_call>",)
    markers = ("</tool_call>",)

    def calls(self) -> Generator[None, None, None]:
        yield from self.source.literal("<tool_call>")
        yield from self.source.space()
        self.call(self.checked_json((yield from self.source.json())))
        yield from self.source.surplus("}", "</tool_call>")
        yield from self.closing("</tool_call>")


class Llama3Parser(ToolParser):
    """`{"name": …, "parameters": {…}}`, several with `;` or line breaks between them, after `<|python_tag|>`, as the
    whole answer, or behind text of it
    (https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1)."""

    starts = ("<|python_tag|>", '{"name"')

    def opening(self) -> Generator[None, None, None]:
        yield from self.source.space()
        if (yield from self.source.peek()) == "{":
            yield from self._objects()
        else:
            self.source.at = 0

    def calls(self) -> Generator[None, None, None]:
        if (yield from self.source.literal(*self.starts)) == "<|python_tag|>":
            yield from self.source.space()
        else:
            self.source.at = 0
        yield from self._objects()

    def _objects(self) -> Generator[None, None, None]:
        while True:
            self.call(self.checked_json((yield from self.source.json())))
            yield from self.source.space()
            yield from self.source.literal(";")
            yield from self.source.space()


class MistralParser(ToolParser):
    """`[TOOL_CALLS]` and a JSON array of calls, or since tokenizer version 11 `[TOOL_CALLS]NAME[ARGS]{…}` for each
    call, with `[CALL_ID]ID` before the arguments in some (https://docs.mistral.ai; mistral-common)."""

    starts = ("[TOOL_CALLS]",)
    markers = ("[ARGS]", "[CALL_ID]")

    def new_id(self) -> str:
        # Mistral's templates refuse any other form.
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))

    def calls(self) -> Generator[None, None, None]:
        yield from self.source.literal("[TOOL_CALLS]")
        yield from self.source.space()
        match (yield from self.source.peek()):
            case "[":
                self.call(*(yield from self._listed()))
                return
            case "{":
                self.call(self.checked_json((yield from self.source.json())))
                return
        name = yield from self.source.name(_NAME)
        yield from self.source.space()
        if (yield from self.source.peek()) == "[":
            marker = yield from self.source.literal("[ARGS]", "[CALL_ID]")
            if marker == "[CALL_ID]":
                yield from self.source.until("[ARGS]")
                yield from self.source.literal("[ARGS]")
            yield from self.source.space()
        self.call(self.checked(name, (yield from self.source.json())))

    def _listed(self) -> Generator[None, None, list[tuple[str, str]]]:
        """The calls in an array, each read as soon as it is complete; of too many, as many as a message may hold."""
        yield from self.source.literal("[")
        yield from self.source.space()
        found: list[tuple[str, str]] = []
        while len(found) < MAX_CALLS:
            found.append(self.checked_json((yield from self.source.json())))
            yield from self.source.space()
            if (yield from self.source.literal(",", "]")) == "]":
                break
            yield from self.source.space()
        return found
