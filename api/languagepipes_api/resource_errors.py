"""What is wrong with a resource, in words: path, value, remedy.

ResourceError       a LanguagePipe that cannot be accepted; carries every Problem found
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

# Fields of the design whose work comes later: people will try them.
NOT_YET = frozenset({"rollout"})
_VALUE_MAX_CHARACTERS = 80
_QUOTED_BOOLEANS = ("'true'", "'false'")
_OTHER_NAMES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "cuda": "GPU"}


class MapKey(str):
    """A part of a path that is a map's key and no field: written in brackets, since it may have dots."""

    __slots__ = ()


@dataclass(frozen=True)
class Problem:
    """path: the field, as in `spec.stages.list[1].layers`; empty for the document itself."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ResourceError(ValueError):
    """A resource was refused. `str()` gives one line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem in `error`, which validating `model` raised."""
    found = [problem for detail in error.errors(include_url=False) for problem in _problems(detail, model)]
    # A list whose entries are wrong also counts as too short in pydantic.
    kept = [one for one in found if not any(other.path.startswith(f"{one.path}[") for other in found)]
    return list(dict.fromkeys(kept))


def _value_of(data: object, field: str) -> object:
    for part in field.split(".") if field else ():
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _problems(detail: ErrorDetails, model: type[BaseModel]) -> Iterator[Problem]:
    location = _fields_only(detail["loc"], model)
    path = _path(location)
    if detail["type"] == "rule":
        for field, message in detail["ctx"]["broken"]:
            value = _value_of(detail["input"], field)
            shown = f"{_shown(value)}: " if isinstance(value, str | int) else ""
            yield Problem(_path((*location, *field.split("."))) if field else path, shown + message)
    else:
        yield Problem(path, _sentence(detail, location, model))


def _sentence(detail: ErrorDetails, location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    context: dict[str, Any] = detail.get("ctx", {})
    given = _shown(detail["input"])
    match detail["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return _unknown_field(str(location[-1]), _model_at(location[:-1], model))
        case "greater_than_equal":
            return f"{given} is less than {context['ge']}"
        case "less_than_equal":
            return f"{given} is more than {context['le']}"
        case "literal_error":
            choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
            return f"{given} is none of {', '.join(choices)}{_guess(detail['input'], choices)}"
        case "string_too_long":
            return f"is {len(detail['input'])} characters long, more than {context['max_length']}"
        case "string_too_short":
            return "is empty; give it a value or remove it"
        case "string_pattern_mismatch":
            return f"{given} does not match {context['pattern']}"
        case "too_long":
            # Of a map pydantic does not say how many it has.
            count = context["actual_length"] or len(detail["input"])
            return f"has {count} entries, more than {context['max_length']}"
        case "too_short":
            return f"has {context['actual_length']} entries, fewer than {context['min_length']}"
        case "int_type":
            return f"{given} is not a whole number{_unquote(detail['input'], int)}"
        case "bool_type":
            return (
                f"{given} is neither true nor false{'; write it without quotes' if given in _QUOTED_BOOLEANS else ''}"
            )
        case "string_type":
            return f"{given} is not a string; write it in quotes"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{given} is not a mapping of fields"
        case "tuple_type" | "list_type":
            return f"{given} is not a list"
        case _:
            return str(detail["msg"])


def _unknown_field(name: str, model: type[BaseModel] | None) -> str:
    known = [field.alias or key for key, field in model.model_fields.items()] if model else []
    if name in NOT_YET:
        return "is not supported by this version; remove it"
    return f"unknown field{_guess(name, known) or '; known here: ' + ', '.join(known)}"


def _guess(value: object, choices: Sequence[str]) -> str:
    if (known := _OTHER_NAMES.get(str(value).lower())) in choices:
        return f"; did you mean {known}?"
    by_fold = {choice.lower().replace("_", ""): choice for choice in choices}
    folded = str(value).lower().replace("_", "").replace("-", "")
    close = difflib.get_close_matches(folded, by_fold, n=1, cutoff=0.6)
    return f"; did you mean {by_fold[close[0]]}?" if close else ""


def _unquote(value: object, kind: type[int]) -> str:
    try:
        kind(str(value))
    except ValueError:
        return ""
    return "; write it without quotes" if isinstance(value, str) else ""


def _shown(value: object) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= _VALUE_MAX_CHARACTERS else text[: _VALUE_MAX_CHARACTERS - 1] + "…"


def _path(location: Sequence[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int | MapKey) else f".{part}" if path else part
    return path


def _fields_only(location: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str | int, ...]:
    """pydantic adds the tags of union members ("int", "str") behind a field's own name; people need none. A map's
    keys are people's own.
    """
    kept: list[str | int] = []
    here: type[BaseModel] | None = model
    in_map = False
    for part in location:
        if isinstance(part, int):
            kept.append(part)
        elif in_map:
            kept.append(MapKey(part))
            in_map = False
        elif here is not None:
            kept.append(part)
            in_map = _is_map(here, part)
            here = _field_model(here, part)
    return tuple(kept)


def _is_map(model: type[BaseModel], alias: str) -> bool:
    return any(
        alias == (field.alias or name) and _has_map(field.annotation) for name, field in model.model_fields.items()
    )


def _has_map(annotation: object) -> bool:
    return get_origin(annotation) is dict or any(_has_map(argument) for argument in get_args(annotation))


def _model_at(location: Sequence[str | int], model: type[BaseModel]) -> type[BaseModel] | None:
    here: type[BaseModel] | None = model
    for part in location:
        if here is not None and isinstance(part, str):
            here = _field_model(here, part)
    return here


def _field_model(model: type[BaseModel], alias: str) -> type[BaseModel] | None:
    for name, field in model.model_fields.items():
        if alias == (field.alias or name):
            return next(_models_in(field.annotation), None)
    return None


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
