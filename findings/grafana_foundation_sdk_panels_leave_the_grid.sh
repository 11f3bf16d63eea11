#!/usr/bin/env bash
# The dashboard builder puts a panel of full width beside one of half width: over the edge of the grid of 24 columns.
#
# Package    grafana-foundation-sdk 1769699998!10.1.0 (PyPI).
# Behaviour  with_panel of the builder places panels by itself, from left to right, row by row, by their span and height.
#            Spans that fill rows exactly are placed well. A panel too wide for what is left of the row is not put
#            into the next one: it stays, and gridPos says that it begins at column 12 and is 24 columns wide.
# Seen       {"x": 12, "w": 24, "y": 0} for spans 12 and 24; the third of three spans of 10 begins at 20.
# Source     with_panel in builders/dashboard.py gives the panel the current column, and looks at the width only then:
#            whether the next panel shall begin a new row. The panels of a row panel are placed by the same lines.
# Effect     Generated dashboards whose rows are not filled exactly have panels outside the grid, which Grafana moves
#            or cuts when it lays them out: not what was built, and a difference at the first save. It comes with
#            nothing more than taking one panel out, or making one wider.
# Instead    Give such panels a grid_pos of their own, or begin a new row with with_row, which also begins a new line; in
#            a test, assert x + w <= 24 for all panels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'grafana-foundation-sdk==1769699998!10.1.0'
"$folder/venv/bin/python" - <<'PYTHON'
import json

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder

COLUMNS = 24


def placed(dashboard: Dashboard) -> list[tuple[int, int, int]]:
    """Of each panel: its column, its width, its line. The panels of rows that are open stand beside the rows."""
    panels = json.loads(JSONEncoder().encode(dashboard.build()))["panels"]
    panels = [inner for panel in panels for inner in (panel, *panel.get("panels", ()))]
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["w"], panel["gridPos"]["y"]) for panel in panels if panel["type"] != "row"]
    print([f"x {x} w {w} y {y}" + (" OUTSIDE" if x + w > COLUMNS else "") for x, w, y in positions])
    return positions


def of_spans(*spans: int) -> Dashboard:
    dashboard = Dashboard("spans")
    for span in spans:
        dashboard.with_panel(Panel().span(span).height(8))
    return dashboard


assert placed(of_spans(12, 12, 24)) == [(0, 12, 0), (12, 12, 0), (0, 24, 8)], "rows that are filled are placed otherwise"
assert placed(of_spans(12, 24)) == [(0, 12, 0), (12, 24, 0)], "changed: a panel of full width is placed otherwise"
assert placed(of_spans(10, 10, 10)) == [(0, 10, 0), (10, 10, 0), (20, 10, 0)], "changed: the third of 10 is placed otherwise"

in_row = Dashboard("row").with_row(Row("r").with_panel(Panel().span(16).height(8)).with_panel(Panel().span(16).height(8)))
assert placed(in_row) == [(0, 16, 1), (16, 16, 1)], "changed: within a row panel, panels are placed otherwise"
print("as found: a panel that does not fit into the line is not put into the next one")
PYTHON
