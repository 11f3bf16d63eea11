"""The grammar of a chat's whole answer, and which tool is to blame if it does not compile."""

from __future__ import annotations

from functools import partial

from fastapi import Request

from languagepipes_node.end_model.openai.chat_support import Offer
from languagepipes_node.end_model.openai.errors import ApiError
from languagepipes_node.end_model.openai.planning import compile_grammar
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.openai.structured_parameters import AskedConstraint
from languagepipes_node.end_model.structured import Constraint, ConstraintError
from languagepipes_node.end_model.structured.constraint import Grammar


async def answer_grammar(
    service: Service, request: Request, offer: Offer | None, asked: AskedConstraint | None, *, inside: bool
) -> Grammar | None:
    """What the answer must match; None for any text. asked: what its content must. inside: it begins within thinking.

    A tool that is not strict and whose schema cannot be kept is held to some JSON object. Raises InvalidRequest with
    the place of what else cannot be kept, and ClientGone.
    """
    if offer is None and asked is None:
        return None
    loose: frozenset[int] = frozenset()
    while True:
        work = partial(service.chat.constraint, offer, asked, inside=inside, loose=loose)
        whole = await service.grammar_workers.run_for(request, work)
        try:
            return await compile_grammar(service, request, whole)
        except ApiError as error:
            if not _is_of_constraint(error):
                raise
            if asked is not None:
                await compile_grammar(service, request, asked)
            more = await _to_loosen(service, request, offer, loose) if offer is not None else frozenset()
            if not more:
                raise
            loose |= more


async def _to_loosen(service: Service, request: Request, offer: Offer, loose: frozenset[int]) -> frozenset[int]:
    """Places of tools that need not match their schemas: those whose schemas do not compile, or else all. Raises
    InvalidRequest for a strict one that does not. loose: those that are let off already."""
    failing: set[int] = set()
    others: set[int] = set()
    for tool, place in zip(offer.tools, offer.places, strict=True):
        if place in loose or not (offer.required or tool.strict):
            continue
        schema = Constraint.json_schema({"type": "object", **tool.parameters})
        try:
            await compile_grammar(service, request, AskedConstraint(schema, f"tools[{place}].function.parameters"))
        except ApiError as error:
            if tool.strict or not _is_of_constraint(error):
                raise
            failing.add(place)
        else:
            if not tool.strict:
                others.add(place)
    return frozenset(failing or others)


def _is_of_constraint(error: ApiError) -> bool:
    return isinstance(error.__cause__, ConstraintError)
