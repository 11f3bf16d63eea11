"""Formats whose calls are JSON objects of a name and arguments: Hermes and Qwen, Llama 3, Mistral."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Generator

from languagepipes_node.end_model.tools import json_text
from languagepipes_node.end_model.tools.arguments import check
from languagepipes_node.end_model.tools.parser import ToolParser
from languagepipes_node.end_model.tools.source import Ended, Malformed

_ALPHANUMERIC = string.ascii_letters + string.digits
_SCALAR = re.compile(r"[\w.+-]{1,256}")
_NAME = re.compile(r"[\w.-]{1,64}")  # longer ones are no tools; what is looked at anew with each piece has an end


class _JsonCallParser(ToolParser):
    """Calls that are JSON objects of `name` and `arguments` or `parameters`, in any order and with other members."""

    def object_call(self) -> Generator[None, None, None]:
        """Read one. It begins with its arguments, or where they come first with its name. Raises Malformed.

        What is wrong behind them is left to the caller.
        """
        source = self.source
        yield from source.literal("{")
        name: str | None = None
        early: str | None = None  # arguments that came before the name
        while True:
            yield from source.space()
            if (yield from source.peek()) == "}":
                source.at += 1
                break
            key = yield from self._string()
            yield from source.space()
            yield from source.literal(":")
            yield from source.space()
            if key == "name" and name is None:
                name = yield from self._string()
                self.named(name)
                if early is not None:
                    self.argument(early)
            elif key in ("arguments", "parameters") and early is None and (yield from source.peek()) != "n":
                early = yield from self._early_arguments() if name is None else self._arguments()
            else:
                yield from self._other()
            if name is not None and early is not None:
                self.end()
                yield from self._behind_arguments()
                return
            yield from source.space()
            if (yield from source.literal(",", "}")) == "}":
                break
        if name is None:
            raise Malformed
        self.argument("{}")
        self.end()

    def _arguments(self) -> Generator[None, None, str]:
        """Read the arguments and give them out as they come: an object, or one in a string; an empty string is an empty
        object. Returns nothing of them."""
        if (yield from self.source.peek()) == '"':
            self.source.at += 1
            begun = False

            def decoded(text: str) -> None:
                nonlocal begun
                text = json_text.decode(f'"{text}"') if begun else json_text.decode(f'"{text}"').lstrip()
                if text and not begun and not text.startswith("{"):
                    raise Malformed
                begun = begun or bool(text)
                if text:
                    self.argument(text)

            yield from self.source.string(decoded)
            if not begun:
                self.argument("{}")
        else:
            yield from self.source.json(self.argument)
        return ""

    def _early_arguments(self) -> Generator[None, None, str]:
        """The same, and return them."""
        parts: list[str] = []
        if (yield from self.source.peek()) == '"':
            text = yield from self._string()
            text = text if text.strip() else "{}"
        else:
            yield from self.source.json(parts.append)
            text = "".join(parts)
        check(text)
        return text

    def _behind_arguments(self) -> Generator[None, None, None]:
        """Read the other members, which say nothing, and the object's end; it may be missing."""
        source = self.source
        try:
            yield from source.space()
            while (yield from source.peek()) == ",":
                source.at += 1
                yield from source.space()
                if (yield from source.peek()) != "}":
                    yield from source.json_string()
                    yield from source.space()
                    yield from source.literal(":")
                    yield from source.space()
                    yield from self._other()
                    yield from source.space()
            if (yield from source.peek()) == "}":
                source.at += 1
        except Ended:
            source.at = len(source.text)
            source.drop_read()
            raise
        source.drop_read()

    def _other(self) -> Generator[None, None, None]:
        """Read a value of any kind."""
        match (yield from self.source.peek()):
            case '"':
                yield from self.source.json_string()
            case "{" | "[":
                yield from self.source.json(lambda text: None, "{[")
            case _:
                json_text.decode((yield from self.source.name(_SCALAR)))

    def _string(self) -> Generator[None, None, str]:
        return str(json_text.decode((yield from self.source.json_string())))


class HermesParser(_JsonCallParser):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`
    (https://github.com/NousResearch/Hermes-Function-Calling); Qwen 2.5 and Qwen 3 too."""

    starts = ("<tool_call>",)
    markers = ("</tool_call>",)

    def calls(self) -> Generator[None, None, None]:
        yield from self.source.literal("<tool_call>")
        yield from self.source.space()
        yield from self.object_call()
        yield from self.source.surplus("}", "</tool_call>")
        yield from self.closing("</tool_call>")


class Llama3Parser(_JsonCallParser):
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
            yield from self.object_call()
            yield from self.source.space()
            yield from self.source.literal(";")
            yield from self.source.space()


class MistralParser(_JsonCallParser):
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
                yield from self._listed()
                return
            case "{":
                yield from self.object_call()
                return
        name = yield from self.source.name(_NAME)
        yield from self.source.space()
        if (yield from self.source.peek()) == "[":
            marker = yield from self.source.literal("[ARGS]", "[CALL_ID]")
            if marker == "[CALL_ID]":
                yield from self.source.until("[ARGS]")
                yield from self.source.literal("[ARGS]")
            yield from self.source.space()
        self.named(name)
        yield from self.source.json(self.argument)
        self.end()

    def _listed(self) -> Generator[None, None, None]:
        """The calls in an array."""
        yield from self.source.literal("[")
        yield from self.source.space()
        while True:
            yield from self.object_call()
            if (yield from self.closing("]", ",")):
                return
            yield from self.source.space()
