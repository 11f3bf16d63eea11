"""Sequences with a grammar in the engine: masked, ended, pre-empted, and gone on with after a lost ring."""

from __future__ import annotations

import re

import pytest
import torch
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.requests import Cancellation, Failure, SamplingParameters, TokenOutput
from languagepipes_node.end_model.structured import Constraint, Grammar, GrammarExhausted
from languagepipes_node.end_model.structured import compiler as compiler_module
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.wire.errors import RingDown
from support.toy_engine import VOCABULARY, MakeRig, Rig, ToyLayer, alone, preemptions

PROMPT = list(range(10))
STOP = VOCABULARY - 1
STOPS = frozenset({STOP})
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[: VOCABULARY - 1]
PATTERN = "([a-e][f-j]){6}[0-7]{2}K*"
SAMPLED = SamplingParameters(temperature=1.5, top_k=40, seed=11)


class Letters:
    """The text side of the toy model: a token is a letter, the last one ends an answer."""

    stop_token_ids = STOPS

    def spelling(self) -> tuple[list[bytes], frozenset[int]]:
        return [*(letter.encode() for letter in LETTERS), b"<end>"], STOPS

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        return tuple(LETTERS.index(letter) for letter in text)


def grammar(pattern: str = PATTERN) -> Grammar:
    return Grammars(Letters(), known_ids=VOCABULARY).compile(Constraint.regex(pattern))  # type: ignore[arg-type]


def text(rig: Rig, request_id: int) -> str:
    return "".join(LETTERS[token] for token in rig.answer(request_id) if token != STOP)


def lose(rig: Rig, *stages: int) -> None:
    """The ring falls; these stages come back as new processes. The engine has joined again."""
    rig.ring.break_ring("a member was killed")
    rig.engine.lose_ring(RingDown("a member was killed", "lost"))
    for stage in stages:
        rig.layers[stage - 1] = ToyLayer(rig.plan.stages[stage - 1].layers.start, rig.plan)
        rig.ring.replace_stage(stage, rig.layers[stage - 1])
    rig.engine.join_ring()


@pytest.mark.parametrize(
    "sampling", [SamplingParameters(temperature=0), SAMPLED, SamplingParameters(seed=5, top_p=0.9)]
)
def test_an_answer_matches_its_grammar_and_others_are_as_without(
    make_rig: MakeRig, sampling: SamplingParameters
) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT, max_tokens=40, stop_token_ids=STOPS, grammar=grammar(), sampling=sampling)
    rig.submit(2, PROMPT, max_tokens=20)
    rig.run()
    assert re.fullmatch(PATTERN, text(rig, 1))
    assert rig.client.finish(1) == "stop" or len(rig.answer(1)) == 40
    assert rig.answer(2) == alone(PROMPT, 20)


def test_an_answer_that_nothing_can_follow_ends_without_a_stop_token(make_rig: MakeRig) -> None:
    rig = make_rig()
    for number, stops in ((1, STOPS), (2, frozenset())):
        rig.submit(number, PROMPT, stop_token_ids=stops, grammar=grammar("[a-c]{4}"))
    rig.run()
    for number in (1, 2):
        assert re.fullmatch("[a-c]{4}", text(rig, number))
        last = rig.client.outputs[number][-1]
        assert isinstance(last, TokenOutput)
        assert (last.finish, last.ended_by_grammar) == ("stop", True)


def test_max_tokens_cuts_an_answer_short(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT, max_tokens=5, stop_token_ids=STOPS, grammar=grammar())
    rig.run()
    assert rig.client.finish(1) == "length"
    assert re.fullmatch("([a-e][f-j]){2}[a-e]", text(rig, 1))


def test_bias_cannot_bring_back_what_the_grammar_excludes(make_rig: MakeRig) -> None:
    rig = make_rig()
    bias = ((LETTERS.index("z"), 100.0), (LETTERS.index("c"), 100.0))
    rig.submit(1, PROMPT, grammar=grammar("[a-e]{8}"), sampling=SamplingParameters(temperature=0, logit_bias=bias))
    rig.run()
    assert text(rig, 1) == "cccccccc"


def test_log_probabilities_are_the_models_own(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.submit(1, PROMPT, grammar=grammar("[a-e]"), logprobs=2)
    rig.submit(2, PROMPT, max_tokens=1, logprobs=2)
    rig.run()
    masked, free = rig.client.outputs[1][0], rig.client.outputs[2][0]
    assert isinstance(masked, TokenOutput)
    assert isinstance(free, TokenOutput)
    assert masked.logprobs is not None
    assert free.logprobs is not None
    assert masked.logprobs.top == free.logprobs.top
    assert masked.logprobs.logprob <= free.logprobs.logprob


@pytest.mark.parametrize("lost", [(), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("after", [0, 1, 5, 9])
def test_a_lost_ring_changes_no_token_and_advances_no_grammar_twice(
    make_rig: MakeRig, lost: tuple[int, ...], after: int
) -> None:
    undisturbed = make_rig()
    undisturbed.submit(1, PROMPT, max_tokens=40, stop_token_ids=STOPS, grammar=grammar(), sampling=SAMPLED)
    undisturbed.run()
    rig = make_rig()
    rig.submit(1, PROMPT, max_tokens=40, stop_token_ids=STOPS, grammar=grammar(), sampling=SAMPLED)
    rig.engine.dispatch()
    while len(rig.answer(1)) < after:
        with torch.inference_mode():
            rig.engine.step()
    lose(rig, *lost)
    rig.engine.dispatch()
    lose(rig, *lost)  # and again, while it is replayed
    rig.run()
    assert rig.answer(1) == undisturbed.answer(1)
    assert re.fullmatch(PATTERN, text(rig, 1))


def test_a_preempted_answer_goes_on_where_its_grammar_was(make_rig: MakeRig) -> None:
    before = preemptions()
    rig = make_rig(blocks=12)
    for number in (1, 2, 3):
        rig.submit(number, PROMPT, max_tokens=14, stop_token_ids=STOPS, grammar=grammar(), sampling=SAMPLED)
    rig.run()
    assert preemptions() > before
    undisturbed = make_rig()
    undisturbed.submit(1, PROMPT, max_tokens=14, stop_token_ids=STOPS, grammar=grammar(), sampling=SAMPLED)
    undisturbed.run()
    assert [rig.answer(number) for number in (1, 2, 3)] == [undisturbed.answer(1)] * 3


def test_a_cancelled_answer_leaves_the_others_alone(make_rig: MakeRig) -> None:
    rig = make_rig()
    shared = grammar()
    rig.submit(1, PROMPT, max_tokens=40, grammar=shared)
    rig.submit(2, PROMPT, max_tokens=40, stop_token_ids=STOPS, grammar=shared, sampling=SAMPLED)
    while len(rig.answer(1)) < 4:
        with torch.inference_mode():
            rig.engine.step()
    rig.engine.submit(Cancellation(1))
    rig.run()
    assert re.fullmatch(PATTERN, text(rig, 2))


def test_a_grammar_that_exceeds_its_limits_fails_its_own_request_only(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLParserLimits

    few = LLParserLimits(max_lexer_states=80, step_lexer_fuel=3000, verbose_errors=False)
    monkeypatch.setattr(compiler_module, "limits", lambda: few)
    rig = make_rig(settings=EngineSettings())
    rig.submit(1, PROMPT, max_tokens=60, grammar=grammar("(a|b)*a(a|b){40}"), sampling=SAMPLED)
    rig.submit(2, PROMPT, max_tokens=20)
    rig.run()
    failure = rig.client.outputs[1][-1]
    assert isinstance(failure, Failure)
    assert failure.code == "internal"
    assert "could not be followed within its limits" in failure.message
    assert rig.answer(2) == alone(PROMPT, 20)
    assert rig.engine._sequences.blocks.used == 0


def test_a_worn_grammar_is_compiled_again() -> None:
    grammars = Grammars(Letters(), known_ids=VOCABULARY)  # type: ignore[arg-type]
    compiled = grammars.compile(Constraint.regex("a*"))
    assert grammars.compile(Constraint.regex("a*")) is compiled
    with pytest.raises(GrammarExhausted):
        compiled.start(STOPS).accept(LETTERS.index("b"))
    assert grammars.compile(Constraint.regex("a*")) is not compiled


@pytest.mark.parametrize("pattern", [PATTERN, "(abc){2,9}", "([ab]{3}c){1,8}K?", "[a-c]+"])
@pytest.mark.parametrize("sampling", [SamplingParameters(temperature=0), SAMPLED])
@pytest.mark.parametrize("lost", [None, (), (1, 2)])
def test_drafts_change_no_token_of_an_answer_with_a_grammar(
    make_rig: MakeRig, pattern: str, sampling: SamplingParameters, lost: tuple[int, ...] | None
) -> None:
    prompt = [0, 1, 2] * 4  # "abcabc…", so that there is something to draft from
    rigs = []
    for speculation in ("none", "ngram"):
        rig = make_rig(settings=EngineSettings(speculation=speculation))  # type: ignore[arg-type]
        rigs.append(rig)
        rig.submit(1, prompt, max_tokens=30, stop_token_ids=STOPS, grammar=grammar(pattern), sampling=sampling)
        if lost is not None and speculation == "ngram":
            while len(rig.answer(1)) < 4 and not rig.idle:
                with torch.inference_mode():
                    rig.engine.step()
            rig.engine.dispatch()
            lose(rig, *lost)
        rig.run()
    plain, drafting = rigs
    assert drafting.answer(1) == plain.answer(1)
    assert drafting.client.finish(1) == plain.client.finish(1)
    assert drafting.ring.frames_sent <= plain.ring.frames_sent + 2 * (lost is not None) + 4 * bool(lost)


def test_what_a_grammar_excludes_is_not_drafted(make_rig: MakeRig) -> None:
    """After "ab" the prompt has "c", which the grammar does not allow there."""
    rig = make_rig(settings=EngineSettings(speculation="ngram"))
    rig.submit(1, [0, 1, 2] * 4 + [0], stop_token_ids=STOPS, grammar=grammar("bd(ab|cd)e"))
    rig.run()
    assert text(rig, 1)[:2] == "bd"
    assert all(len(batch.rows) == 1 for batch in rig.end.first.batches[1:3])


def test_looking_how_far_a_draft_can_follow_moves_no_grammar() -> None:
    state = grammar("ab(c|d)e").start(STOPS)
    assert [state.possible(tokens) for tokens in ([0, 1, 2, 4], [0, 1, 4], [1], [])] == [4, 2, 0, 0]
    state.accept(0)
    assert state.possible([1, 3, 4]) == 3
    for token in (1, 3, 4):
        state.accept(token)
    assert state.is_over
    assert state.possible([0]) == 0


def test_what_a_grammar_requires_is_drafted_and_takes_fewer_frames(make_rig: MakeRig) -> None:
    """No token of the answer stands in it twice, or in the prompt: nothing can be found there."""
    rigs = []
    for speculation in ("none", "ngram"):
        rig = make_rig(settings=EngineSettings(speculation=speculation))
        rigs.append(rig)
        rig.submit(1, [4, 4], max_tokens=30, stop_token_ids=STOPS, grammar=grammar("a(bcdefghijkl|cmnopqrstuv)w"))
        rig.run()
    plain, drafting = rigs
    assert text(drafting, 1) == text(plain, 1)
    assert drafting.client.finish(1) == plain.client.finish(1)
    assert plain.ring.frames_sent == 13
    assert drafting.ring.frames_sent <= 6  # drafts end with a block of four tokens


def test_what_has_to_come_next_is_written_as_tokens_but_for_the_last() -> None:
    state = grammar("abcd(a|b)e").start(STOPS)
    assert state.forced() == (0, 1, 2)
    for token in (0, 1, 2, 3):
        state.accept(token)
    assert state.forced() == ()
    state.accept(0)
    state.accept(4)
    assert state.is_over
    assert state.forced() == ()
