"""Whatever the mask allows, and it alone, is an answer: tokens drawn at random, judged by validators of others."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.structured import Constraint, GrammarExhausted, GrammarState
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.end_model.text import TextCodec
from support.random_schemas import schemas
from support.tiny_tokenizer import model_files, train_tokenizer

CODEC = TextCodec.load(model_files(train_tokenizer()).__getitem__)
GRAMMARS = Grammars(CODEC, known_ids=CODEC.vocabulary_size)
STOPS = CODEC.stop_token_ids


def answer(constraint: Constraint, seed: int, *, most: int = 2000, stops: frozenset[int] = STOPS) -> str:
    """Tokens drawn from all that the mask allows, up to the end that the grammar allows."""
    state = GRAMMARS.compile(constraint).start(stops)
    randomness = random.Random(seed)
    tokens: list[int] = []
    for _ in range(most):
        allowed = [token for token, forbidden in enumerate(state.mask()) if not forbidden]
        token = randomness.choice(allowed)
        if token in stops:
            return CODEC.decode(tokens)
        tokens.append(token)
        state.accept(token)
        if state.is_over:
            return CODEC.decode(tokens)
    raise AssertionError("the answer has no end")


def accept_all(state: GrammarState, text: str) -> None:
    for token in CODEC.encode(text, add_special_tokens=False):
        state.accept(token)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(schemas(), st.integers(0, 1000))
def test_every_answer_matches_its_schema(schema, seed):
    text = answer(Constraint.json_schema(schema), seed)
    jsonschema.validate(
        json.loads(text),
        schema,
        jsonschema.Draft202012Validator,
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


@pytest.mark.parametrize("stops", [STOPS, frozenset()])
@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[a-z]{2}", r"^(ja|nein|vielleicht)\.$", "é{1,3}", r"a/b\\c", "(x|yz){2}"]
)
def test_every_answer_matches_its_regular_expression(pattern, stops):
    for seed in range(5):
        assert re.fullmatch(pattern, answer(Constraint.regex(pattern), seed, stops=stops))


def test_every_answer_is_one_of_the_choices():
    choices = ["yes", "no", "no way", 'say "no"', "a\nb", "日本", "a/b\\c"]
    assert {answer(Constraint.choice(choices), seed) for seed in range(60)} == set(choices)


def test_every_answer_is_of_the_language_of_its_grammar():
    balanced = 'start: pair\npair: "(" pair? ")"'
    for seed in range(20):
        text = answer(Constraint.lark(balanced), seed)
        assert text == "(" * (len(text) // 2) + ")" * (len(text) // 2)
    gbnf = 'root ::= "<" [a-c]+ ">" num?\nnum ::= [0-9] | [0-9] num'
    for seed in range(20):
        assert re.fullmatch("<[a-c]+>[0-9]*", answer(Constraint("grammar", gbnf), seed))


def test_a_grammar_may_hold_schemas():
    text = answer(Constraint.lark('start: "<call>" %json {"type": "integer", "minimum": 5, "maximum": 7} "</call>"'), 3)
    assert re.fullmatch("<call>[567]</call>", text)


@pytest.mark.parametrize("text", ["2021-02-29", "1900-02-29", "2100-02-29", "2024-04-31"])
def test_days_that_do_not_exist_are_no_dates(text):
    state = GRAMMARS.compile(Constraint.json_schema({"type": "string", "format": "date"})).start(STOPS)
    with pytest.raises(GrammarExhausted):
        accept_all(state, f'"{text}"')


@pytest.mark.parametrize("text", ["2020-02-29", "2000-02-29", "2024-12-31"])
def test_days_that_exist_are_dates(text):
    state = GRAMMARS.compile(Constraint.json_schema({"type": "string", "format": "date"})).start(STOPS)
    accept_all(state, f'"{text}"')
    assert state.is_over


def test_control_tokens_are_no_text_of_a_string():
    state = GRAMMARS.compile(Constraint.json_object()).start(STOPS)
    accept_all(state, '{"a": "b')
    forbidden = state.mask()
    assert all(forbidden[token] for token in (0, 1, 2))  # <|endoftext|>, <|im_start|>, <|im_end|>
    assert not forbidden[CODEC.encode("b")[0]]


def test_stop_tokens_are_allowed_where_the_text_is_complete_and_nowhere_else():
    state = GRAMMARS.compile(Constraint.regex("ab*")).start(STOPS)
    assert all(state.mask()[token] for token in STOPS)
    state.accept(CODEC.encode("a")[0])
    assert not any(state.mask()[token] for token in STOPS)
    assert not state.is_over
    # With `ignore_eos` no token ends the answer.
    state = GRAMMARS.compile(Constraint.regex("ab*")).start(frozenset())
    state.accept(CODEC.encode("a")[0])
    assert all(state.mask()[token] for token in STOPS)


def test_sequences_of_one_grammar_do_not_touch_each_other():
    grammar = GRAMMARS.compile(Constraint.regex("[a-z]{1,3}"))
    first, second = grammar.start(STOPS), grammar.start(STOPS)
    accept_all(first, "abc")
    assert first.is_over
    assert not second.is_over
    assert not second.mask()[CODEC.encode("a")[0]]
