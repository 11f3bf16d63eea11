"""The chart's Grafana dashboards as files, and the queries of their panels as Prometheus gets them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from support.paths import ROOT

Json = dict[str, Any]

FOLDER = ROOT / "charts" / "languagepipes" / "dashboards"
NAMES = ("fleet", "pipe")
# What Grafana puts in place of variables: of the dashboards, with all values chosen where several may be, and its own.
VARIABLES: Mapping[str, str] = {
    "namespace": "team-a",
    "pipe": "qwen3",
    "replica": ".*",
    "operator": ".*",
    "__rate_interval": "2m",
}
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


@dataclass(frozen=True)
class PanelQuery:
    """expression: PromQL without variables. instant: asked for one moment, not for a range."""

    dashboard: str
    panel: str
    ref_id: str
    expression: str
    instant: bool

    @property
    def name(self) -> str:
        return f"{self.dashboard}/{self.panel}/{self.ref_id}"


def load(name: str) -> Json:
    found: Json = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def panels(dashboard: Json) -> list[Json]:
    """Without rows, but with the panels within rows that are folded."""
    every = [each for panel in dashboard["panels"] for each in (panel, *panel.get("panels", ()))]
    return [panel for panel in every if panel["type"] != "row"]


def variables_in(text: str) -> set[str]:
    return {match[1] or match[2] for match in _VARIABLE.finditer(text)}


def replaced(text: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """With the variables' values in their place. KeyError for a variable that has none."""
    return _VARIABLE.sub(lambda match: variables[match[1] or match[2]], text)


def queries(variables: Mapping[str, str] | None = None) -> list[PanelQuery]:
    """Of every panel of all dashboards. variables: in place of those above."""
    values = {**VARIABLES, **(variables or {})}
    return [
        PanelQuery(name, panel["title"], target["refId"], replaced(target["expr"], values), target["instant"])
        for name in NAMES
        for panel in panels(load(name))
        for target in panel["targets"]
    ]


def series_of_variables(variables: Mapping[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Of each variable that is asked for: the series, and the label whose values it takes."""
    values = {**VARIABLES, **(variables or {})}
    found = {}
    for name in NAMES:
        for variable in load(name)["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert match, variable["query"]
                found[f"{name}/{variable['name']}"] = (replaced(match[1], values), match[2])
    return found
