"""Thinking is told from the answer, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_node.end_model.reasoning.reader import ThinkingThenCalls
from languagepipes_node.end_model.reasoning.splitter import MARKS, ThinkingSplitter, detect, opens
from languagepipes_node.end_model.tools.events import CallBegin, Reasoning, Text
from languagepipes_node.end_model.tools.families import FAMILIES

EVERY_FAMILY = pytest.mark.parametrize("marks", MARKS, ids=[marks.begin for marks in MARKS])


def split(reader, pieces: list[str]) -> tuple[str, str]:
    """(thinking, content)"""
    events = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
    assert all(event.text for event in events)
    thinking = "".join(event.text for event in events if isinstance(event, Reasoning))
    return thinking, "".join(event.text for event in events if isinstance(event, Text))


@EVERY_FAMILY
def test_thinking_and_answer_come_apart_wherever_the_text_is_cut(marks):
    text = f"{marks.begin}\nLet me see.\n\nIt is a < b.\n{marks.end}\n\nThe answer: {marks.begin}x\n"
    expected = ("Let me see.\n\nIt is a < b.", f"The answer: {marks.begin}x\n")
    assert split(ThinkingSplitter(marks, inside=False), list(text)) == expected
    for place in range(len(text) + 1):
        assert split(ThinkingSplitter(marks, inside=False), [text[:place], text[place:]]) == expected


@EVERY_FAMILY
def test_an_answer_may_begin_within_thinking_that_the_prompt_opened(marks):
    text = f"\nLet me see.{marks.end}Paris."
    for pieces in ([text], list(text)):
        assert split(ThinkingSplitter(marks, inside=True), pieces) == ("Let me see.", "Paris.")


@pytest.mark.parametrize(
    ("text", "inside", "expected"),
    [
        ("Paris.", False, ("", "Paris.")),
        ("<thin ice", False, ("", "<thin ice")),
        ("  \n", False, ("", "  \n")),
        ("I say <think>no</think>", False, ("", "I say <think>no</think>")),
        ("<think>and never an end", False, ("and never an end", "")),
        ("and never an end </thin", True, ("and never an end </thin", "")),
        ("<think>\n\n</think>\n\nParis.", False, ("", "Paris.")),
        ("  <think>x</think>  ", False, ("x", "")),
        ("", True, ("", "")),
    ],
)
def test_answers_without_thinking_and_thinking_without_an_answer(text, inside, expected):
    for pieces in ([text], list(text)):
        assert split(ThinkingSplitter(MARKS[0], inside=inside), pieces) == expected


@settings(deadline=None)
@given(
    parts=st.lists(st.sampled_from(["<think>", "</think>", "</", "<th", " ", "\n", "a", "é🎉"]), max_size=10),
    inside=st.booleans(),
)
def test_nothing_but_marks_and_white_space_around_them_is_lost(parts, inside):
    text = "".join(parts)
    whole = split(ThinkingSplitter(MARKS[0], inside=inside), [text])
    assert split(ThinkingSplitter(MARKS[0], inside=inside), list(text)) == whole

    def letters(shown: str) -> str:
        return "".join(shown.replace("<think>", "").replace("</think>", "").split())

    assert letters("".join(whole)) == letters(text)


def test_a_call_in_thinking_is_thinking_and_one_behind_it_a_call():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    text = f"<think>I could {call}</think>\n\n{call}"
    for pieces in ([text], list(text)):
        parser = FAMILIES["hermes"].make({"now": {}})
        reader = ThinkingThenCalls(ThinkingSplitter(MARKS[0], inside=False), parser)
        events = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
        assert "".join(event.text for event in events if isinstance(event, Reasoning)) == f"I could {call}"
        assert [event.name for event in events if isinstance(event, CallBegin)] == ["now"]
        assert not any(isinstance(event, Text) for event in events)


def test_a_template_says_how_its_model_thinks_and_a_prompt_whether_it_has_begun():
    assert detect("{{ content.split('</think>') }}") == MARKS[0]
    assert detect("[THINK]") == MARKS[1]
    assert detect("{{ messages }}") is None
    assert opens("<|im_start|>assistant\n<think>\n", MARKS[0])
    assert not opens("<|im_start|>assistant\n<think>\n\n</think>\n\n", MARKS[0])
