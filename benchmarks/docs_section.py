"""The part of a page that a benchmark writes: between two comments that name it. Pure."""

from __future__ import annotations


class SectionMissing(ValueError):
    """The page has no such section; the message says which lines to add."""


def replace_section(page: str, name: str, text: str) -> str:
    """The page with `text` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`, which stay."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SectionMissing(f"the page has no section {name!r}: add the lines {begin} and {end} where it belongs")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"
