"""Stop strings, in a text that comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from languagepipes_node.end_model.text import StopStrings


def cut(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    """What is shown of a text that comes in `parts`."""
    matcher = StopStrings(stops)
    shown = ""
    for part in parts:
        text, stopped = matcher.push(part)
        shown += text
        if stopped:
            return shown, True
    return shown + matcher.finish(), False


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        (["abc"], "xxabcyy", "xx", True),
        (["abc"], "xxab", "xxab", False),
        (["aab"], "aaab", "a", True),
        (["abab"], "aababab", "a", True),
        (["abcd", "bc"], "xabcd", "xa", True),
        (["bc", "abc"], "xabc", "x", True),
        (["\n\n"], "line\nline\n\nmore", "line\nline", True),
        (["🎉"], "a🎉b", "a", True),
        ([], "anything", "anything", False),
    ],
)
def test_stop_strings_are_found_however_the_text_is_cut(stops, text, shown, stopped):
    assert cut(stops, [text]) == (shown, stopped)
    assert cut(stops, list(text)) == (shown, stopped)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    parts=st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_stop_strings_do_not_depend_on_where_the_text_is_cut(stops, parts):
    text = "".join(parts)
    assert cut(stops, parts) == cut(stops, list(text)) == cut(stops, [text])
    shown, stopped = cut(stops, parts)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("stops", "parts", "shown", "stopped"),
    [
        (["abc"], ["xab", "cy"], "x", True),
        (["abc"], ["abcab", "cy"], "abc", True),
        (["abc", "cde"], ["abc", "dey"], "ab", True),
        (["abc"], ["xabc", "y"], "xabcy", False),
        (["abc"], ["xab", "dy"], "xabdy", False),
        (["ab", "abc"], ["ab", "c"], "", True),
        (["aa"], ["aaa", "ab"], "aa", True),
    ],
)
def test_a_stop_string_counts_where_it_ends(stops, parts, shown, stopped):
    matcher = StopStrings(stops)
    first, ended = matcher.push(parts[0], may_end=False)
    assert not ended
    rest, ended = matcher.push(parts[1])
    assert ended is stopped
    assert first + rest + matcher.finish() == shown


def test_a_stop_string_that_does_not_count_is_not_held_back():
    matcher = StopStrings(["abc"])
    assert matcher.push("xabc", may_end=False) == ("xabc", False)
    assert matcher.push("abcab", may_end=False) == ("abc", False)
    assert matcher.finish() == "ab"
