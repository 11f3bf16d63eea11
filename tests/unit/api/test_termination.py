"""Why a member ended, as the node writes it and as operator and `up` read it."""

from __future__ import annotations

from languagepipes_api.termination import FINAL_CODES, PASSING_CODES, Termination


def test_a_message_is_a_code_and_a_sentence() -> None:
    found = Termination.parse("WrongWeights: model.norm.weight: shape [8],\n expected [16]\n")
    assert found == Termination("WrongWeights", "model.norm.weight: shape [8], expected [16]")
    assert found.final
    assert str(found) == "WrongWeights: model.norm.weight: shape [8], expected [16]"


def test_what_another_program_left_is_no_termination() -> None:
    for message in ("", "OutOfMemory", "OutOfMemory:  ", "error: no such file", "Killed", ": x", "A b: c"):
        assert Termination.parse(message) is None


def test_a_code_is_final_or_may_pass_and_an_unknown_one_may_pass() -> None:
    assert not FINAL_CODES & PASSING_CODES
    assert not Termination("OfANewerNode", "…").final
