"""Sequences with a grammar in the engine, and what else a request may ask of it."""

from __future__ import annotations

import re

import pytest
from languagepipes_node.end_model.requests import PromptScores, SamplingParameters, TokenOutput
from languagepipes_node.end_model.structured import Constraint, Grammar
from languagepipes_node.end_model.structured.compiler import Grammars
from support.toy_engine import VOCABULARY, MakeRig, Rig

PROMPT = list(range(10))
STOP = VOCABULARY - 1
STOPS = frozenset({STOP})
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[: VOCABULARY - 1]


class Letters:
    """The text side of the toy model: a token is a letter, the last one ends an answer."""

    stop_token_ids = STOPS

    def spelling(self) -> tuple[list[bytes], frozenset[int]]:
        return [*(letter.encode() for letter in LETTERS), b"<end>"], STOPS

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(LETTERS.index(letter) for letter in text)


def grammar(pattern: str) -> Grammar:
    return Grammars(Letters(), known_ids=VOCABULARY).compile(Constraint.regex(pattern))  # type: ignore[arg-type]


def text(rig: Rig, request_id: int) -> str:
    return "".join(LETTERS[token] for token in rig.answer(request_id) if token != STOP)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_goes_on_to_min_tokens_as_far_as_its_grammar_lets_it(make_rig: MakeRig, temperature: float) -> None:
    sampling = SamplingParameters(
        temperature=temperature, seed=3, min_tokens=6, logit_bias=((STOP, 100.0),), repetition_penalty=1.5
    )
    rig = make_rig()
    for number, pattern in enumerate(("[a-c]{2,20}", "([a-c]{2}|[d-f]{3})X*"), start=1):
        rig.submit(number, PROMPT, max_tokens=30, stop_token_ids=STOPS, grammar=grammar(pattern), sampling=sampling)
    rig.run()
    # The end is likelier than anything else, and comes as soon as it may.
    assert re.fullmatch("[a-c]{6}", text(rig, 1))
    assert re.fullmatch("([a-c]{2}|[d-f]{3})X*", text(rig, 2))
    assert len(text(rig, 2)) == 6


def test_a_grammar_ends_an_answer_that_has_not_its_min_tokens(make_rig: MakeRig) -> None:
    rig = make_rig()
    sampling = SamplingParameters(temperature=0, min_tokens=6)
    stops = STOPS | {LETTERS.index("a"), LETTERS.index("b")}
    for number, pattern in enumerate(("[a-c]{2}", "[ab]c*"), start=1):
        rig.submit(number, PROMPT, max_tokens=30, stop_token_ids=stops, grammar=grammar(pattern), sampling=sampling)
    rig.run()
    assert (text(rig, 1), rig.client.finish(1)) == ("cc", "stop")
    # Nothing but stop tokens is allowed at its beginning.
    assert (text(rig, 2) in ("a", "b"), rig.client.finish(2)) == (True, "stop")


def test_a_prompts_scores_are_those_without_a_grammar(make_rig: MakeRig) -> None:
    rig = make_rig()
    asked = {"max_tokens": 4, "prompt_logprobs": 1, "logprobs": 1}
    rig.submit(1, PROMPT, **asked)
    rig.submit(2, PROMPT, **asked, grammar=grammar("[a-c]{4}"), stop_token_ids=STOPS)
    rig.run()
    plain, held = (
        [
            token.logprob
            for part in rig.client.outputs[number]
            if isinstance(part, PromptScores)
            for token in part.logprobs
        ]
        for number in (1, 2)
    )
    assert len(plain) == len(PROMPT) - 1
    assert held == pytest.approx(plain, abs=1e-5)
    assert re.fullmatch("[a-c]{4}", text(rig, 2))
    assert all(output.logprobs is not None for output in rig.client.outputs[2] if isinstance(output, TokenOutput))
