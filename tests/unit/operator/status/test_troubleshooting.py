"""docs/troubleshooting.md explains every reason that a condition can have, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import languagepipes_operator
from languagepipes_node.weights import errors
from languagepipes_operator.status.reasons import REASONS
from support.paths import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
OPERATOR = Path(languagepipes_operator.__file__ or "").parent


def section(title: str) -> list[list[str]]:
    """The rows of the table under that heading, their cells stripped of spaces and of the reason's backticks."""
    body = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def reasons_in(title: str) -> list[str]:
    return [row[0].strip("`") for row in section(title)]


def test_the_operators_own_reasons_stand_on_the_page_word_for_word() -> None:
    normal = [[f"`{name}`", said.meaning, said.remedy] for name, said in REASONS.items() if said.normal]
    wrong = [
        [f"`{name}`", said.meaning, said.remedy, "yes" if said.needs_person else "no"]
        for name, said in REASONS.items()
        if not said.normal
    ]

    assert section("Nothing is wrong") == normal
    assert section("Something is wrong") == wrong


def test_every_reason_of_the_planner_stands_on_the_page() -> None:
    """As its sources spell them: PlanError("Reason", …), or a reason that is chosen before."""
    sources = "\n".join(path.read_text() for path in sorted((OPERATOR / "planning").glob("*.py")))
    said = set(re.findall(r'PlanError\(\s*"([A-Z]\w+)"', sources))
    said |= set(re.findall(r'"(Insufficient(?:GPUs|Memory|CPU))"', sources))

    assert set(reasons_in("There is no plan")) == said


def test_every_reason_of_the_weights_store_stands_on_the_page() -> None:
    def leaves(kind: type[errors.WeightsError]) -> set[str]:
        below = kind.__subclasses__()
        return {kind.__name__} if not below else set().union(*map(leaves, below))

    of_the_store = set().union(*map(leaves, (errors.SourceError, errors.FileError, errors.CacheError)))
    places = ("observe/store_answers.py", "cli/up/observe.py", "observe/store_poller.py")
    source = "".join((OPERATOR / place).read_text() for place in places)
    of_the_operator = set(re.findall(r'(?:reason=|SourceFailed\(\s*)"([A-Z]\w+)"', source))

    assert set(reasons_in("The weights are not available")) == of_the_store | of_the_operator


def test_every_failure_has_a_remedy_and_no_reason_stands_twice() -> None:
    titles = ("Nothing is wrong", "Something is wrong", "There is no plan", "The weights are not available")
    listed = [reason for title in titles for reason in reasons_in(title)]

    assert len(listed) == len(set(listed))
    assert [row[0] for title in titles[1:] for row in section(title) if not row[2]] == []
