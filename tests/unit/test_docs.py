"""The pages name only what exists: files in backticks, the files that links lead to, and the headings in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.paths import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "findings/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
PAGES_WITH_PATHS = [ROOT / "docs/architecture.md", ROOT / "docs/glossary.md", ROOT / "CONTRIBUTING.md"]

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
# What stands at the top of the repository: code in backticks that begins so, or is so, is a path.
_TOP = {path.name for path in ROOT.iterdir() if path.name == ".ci" or not path.name.startswith(".")}


def paths_in(text: str) -> set[str]:
    """Code in backticks that is a path: one word with a slash, or the name of something at the top."""
    words = {code for code in _CODE.findall(_FENCE.sub("", text)) if re.fullmatch(r"[\w./-]+", code)}
    return {word for word in words if word in _TOP or ("/" in word and _looks_like_a_path(word))}


def _looks_like_a_path(word: str) -> bool:
    first = word.split("/")[0]
    return first in _TOP or bool(re.search(r"\.(py|md|sh|toml|txt|yaml|c)$", word))


def links_in(text: str) -> set[str]:
    """The targets of links, without those to other sites."""
    without_code = _CODE.sub("", _FENCE.sub("", text))
    return {target for target in _LINK.findall(without_code) if not re.match(r"[a-z]+:", target)}


def anchors_in(text: str) -> set[str]:
    """What GitHub calls the headings: lower case, without punctuation, spaces as hyphens; a second one gets -1."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(re.escape(anchor) + r"(-\d+)?", other))
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES_WITH_PATHS, ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    paths = paths_in(page.read_text(encoding="utf-8"))

    missing = sorted(path for path in paths if not (ROOT / path).exists())

    assert paths, "the page names no file"
    assert not missing, f"{name_of(page)} names what is not there"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    broken = []
    for link in sorted(links_in(page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors_in(target.read_text(encoding="utf-8")):
            broken.append(f"{link}: no such heading")

    assert not broken, f"{name_of(page)} has broken links"


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links_in((ROOT / "README.md").read_text(encoding="utf-8"))}

    pages = {name_of(page) for page in (ROOT / "docs").glob("*.md")}

    assert pages <= linked, "README's table of pages lacks some"


def test_paths_and_links_are_distinguished_from_other_words() -> None:
    text = "\n".join(
        [
            "`api/languagepipes_api/spec.py` [page](docs/no.md#a-b) `/v1/models` `hf://a/b` [`code`](x.md) [site](https://a.b)",
            "```",
            "`docs/in-a-fence.md` [not](a-link.md)",
            "```",
            "## A `b`: c, d",
        ]
    )

    assert paths_in(text) == {"api/languagepipes_api/spec.py"}
    assert links_in(text) == {"docs/no.md#a-b", "x.md"}
    assert anchors_in(text) == {"a-b-c-d"}
