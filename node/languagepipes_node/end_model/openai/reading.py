"""Reading a nested part of a request field by field, with the place of what is wrong; and names of another route's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from languagepipes_node.end_model.openai.errors import ApiError, InvalidRequest, UnsupportedParameter
from languagepipes_node.end_model.openai.fields import (
    is_one_of,
    missing,
    shortened,
    unknown,
    unsupported,
    without_nulls,
    wrong_type,
)
from languagepipes_node.end_model.tools.arguments import check
from languagepipes_node.end_model.tools.source import Malformed

_REQUIRED: Any = object()


class Fields:
    """An object of a request; a null counts as absent. Every method raises InvalidRequest. where: its place."""

    def __init__(self, value: object, where: str, expected: str = "an object") -> None:
        if not isinstance(value, dict):
            raise wrong_type(where, expected, value)
        self.where = where
        self._left = without_nulls(value)
        self._known: set[str] = set()

    def place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str, default: Any = _REQUIRED) -> Any:
        """Whatever the field holds. Without a default it must be there."""
        self._known.add(name)
        if name in self._left:
            return self._left.pop(name)
        if default is _REQUIRED:
            raise missing(self.place(name))
        return default

    def text(self, name: str, default: Any = _REQUIRED, *, most: int | None = None) -> Any:
        """A string of at most `most` characters; the default need be none."""
        value = self.take(name, default)
        if value is default:
            return value
        if not isinstance(value, str):
            raise wrong_type(self.place(name), "a string", value)
        if most is not None and len(value) > most:
            where = self.place(name)
            raise InvalidRequest(f"'{where}' has {len(value)} characters, at most {most} are accepted.", param=where)
        return value

    def of(self, kind: type[Any], expected: str, name: str, default: Any = _REQUIRED) -> Any:
        """A value of a JSON type: dict, list or bool."""
        value = self.take(name, default)
        if value is not default and not isinstance(value, kind):
            raise wrong_type(self.place(name), expected, value)
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value: bool = self.of(bool, "a boolean", name, default)
        return value

    def one_of(self, name: str, choices: Sequence[str], default: Any = _REQUIRED) -> Any:
        value = self.text(name, default)
        if value is not default and value not in choices:
            where = self.place(name)
            raise InvalidRequest(f"'{where}' must be {alternatives(choices)}, got '{shortened(value)}'.", param=where)
        return value

    def without_effect(self, name: str, *accepted: object) -> None:
        """A field that is not served: accepted with values that ask for nothing."""
        value = self.take(name, None)
        if value is not None and not is_one_of(value, accepted):
            where = self.place(name)
            raise UnsupportedParameter(unsupported(where, accepted), param=where)

    def no_more(self) -> None:
        for name in self._left:
            raise unknown(name, self._known, inside=self.where or None)


def alternatives(choices: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))


def items_of(value: object, where: str, expected: str, *, most: int, least: int = 0) -> list[Any]:
    """A list of `least` to `most` things. Raises InvalidRequest."""
    if not isinstance(value, list):
        raise wrong_type(where, expected, value)
    if not least <= len(value) <= most:
        raise InvalidRequest(f"'{where}' holds {len(value)} entries, expected {least} to {most}.", param=where)
    return value


def json_object_text(text: str, where: str) -> str:
    """`text`, which must be that of a JSON object; empty text is that of an empty one. Raises InvalidRequest."""
    text = text if text.strip() else "{}"
    try:
        check(text)
    except Malformed:
        raise InvalidRequest(f"'{where}' must be the text of a JSON object.", param=where) from None
    return text


@contextlib.contextmanager
def params_renamed(rename: Callable[[str], str]) -> Iterator[None]:
    """What is raised within names the request's own parameters, instead of the chat's."""
    try:
        yield
    except ApiError as error:
        if error.param is not None and (name := rename(error.param)) != error.param:
            error.message = error.message.replace(f"'{error.param}'", f"'{name}'")
            error.param = name
        raise
