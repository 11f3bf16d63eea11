"""What all parts of the LanguagePipe resource are made of: closed models, and rules said in CEL and in Python.

This module knows none of the resource's fields; `spec` and `template` do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from languagepipes_api.quantity import (
    QUANTITY_MAX_LENGTH,
    QUANTITY_PATTERN,
    RESOURCE_QUANTITY_PATTERN,
    parse_quantity,
    parse_resource_quantity,
)


@dataclass(frozen=True)
class Rule:
    """A rule over several fields, said twice: in CEL for the API server, in Python for everybody else.

    field: the field to point at, as YAML spells it; none for the object itself. where: a rule about sources
    holds in the cluster only or with `languagepipes up` only; the latter has no CEL.
    """

    message: str
    holds: Callable[[Any], bool]
    cel: str = ""
    field: str = ""
    where: Literal["everywhere", "cluster", "local"] = "everywhere"


class ResourceModel(BaseModel):
    """What all parts of the resource have in common: camelCase outside, closed, immutable, no conversions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obeys_rules(self, info: ValidationInfo) -> Self:
        place = "local" if (info.context or {}).get("local") else "cluster"
        broken = [
            (rule.field, rule.message)
            for rule in self.rules
            if rule.where in ("everywhere", place) and not rule.holds(self)
        ]
        if broken:
            raise PydanticCustomError("rule", "{broken}", {"broken": tuple(broken)})
        return self


def _quantity(value: int | str) -> int | str:
    try:
        amount = parse_quantity(value)
    except ValueError as error:
        raise PydanticCustomError("quantity", "{reason}", {"reason": str(error)}) from error
    if isinstance(value, int) and amount < 1:
        raise PydanticCustomError("quantity", "{value} is less than 1", {"value": value})
    return value


def _resource_quantity(value: int | str) -> int | str:
    try:
        parse_resource_quantity(value)
    except ValueError as error:
        raise PydanticCustomError("quantity", "{reason}", {"reason": str(error)}) from error
    return value


def _int_or_string(minimum: int, pattern: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": minimum,
            "maxLength": QUANTITY_MAX_LENGTH,
            "pattern": pattern,
            "x-kubernetes-int-or-string": True,
        }
    )


# An amount of memory, at least one byte where it is a number.
Quantity = Annotated[int | str, AfterValidator(_quantity), _int_or_string(1, QUANTITY_PATTERN)]
# An amount of any resource: also thousandths (500m), and zero.
ResourceQuantity = Annotated[
    int | str, AfterValidator(_resource_quantity), _int_or_string(0, RESOURCE_QUANTITY_PATTERN)
]
# The name of an object that is a DNS subdomain: a Secret, a StorageClass, a PriorityClass, a RuntimeClass.
ObjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    ),
]
# A key of a Secret or ConfigMap.
KeyName = Annotated[str, Field(min_length=1, max_length=253, pattern="^[-._a-zA-Z0-9]+$")]
# Of what names a Secret or ConfigMap.
MayBeMissing = Annotated[
    bool | None, Field(description="Whether the pod starts without it; false, if absent: it waits until there is one.")
]
