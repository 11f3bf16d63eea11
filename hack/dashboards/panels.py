"""Kinds of panels, and where they stand. Each panel has a description (what it shows; what to do when it looks bad), a
unit and the data source that the dashboard's variable names.

Panels are placed here and not by the SDK: its with_panel leaves a panel that is too wide for what is left of a line in
that line, out of the grid.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import dashboard as build_dashboard
from grafana_foundation_sdk.builders import heatmap as build_heatmap
from grafana_foundation_sdk.builders import prometheus as build_prometheus
from grafana_foundation_sdk.builders import stat as build_stat
from grafana_foundation_sdk.builders import table as build_table
from grafana_foundation_sdk.builders import timeseries as build_timeseries
from grafana_foundation_sdk.models import common, dashboard, heatmap, prometheus

COLUMNS = 24
TAG = "languagepipes"
ALL = ".*"
DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TOKENS_A_SECOND = "suffix: tokens/s"
_REF_IDS = string.ascii_uppercase


@dataclass(frozen=True)
class Query:
    """legend: as Grafana has it, with {{label}} in it."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Column:
    """One of a table. source: a label, or the letter of a query (A, B, …)."""

    source: str
    title: str
    unit: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the field, by Grafana's names


@dataclass(frozen=True)
class Row:
    """A line that can be folded, and the panels under it. repeat: a variable, one row for each of its values."""

    title: str
    panels: Sequence[dashboard.Panel]
    repeat: str | None = None


# --- Kinds of panels --------------------------------------------------------------------------------------------------


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    bars: bool = False,
    top: float | None = None,
) -> dashboard.Panel:
    """What changes with time. bars: for events, which are counted within the time of one point. top: of the axis."""
    panel = build_timeseries.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    panel.span(width).height(8).targets(_targets(queries))
    panel.legend(
        build.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
    )
    panel.tooltip(build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    panel.draw_style(common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE)
    panel.axis_soft_min(0).fill_opacity(70 if bars else 20 if stacked else 5)
    if stacked or bars:
        panel.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if top is not None:
        panel.max(top)
    return panel.build()


def heat_map(title: str, description: str, unit: str, expression: str, *, width: int = 8) -> dashboard.Panel:
    """How often a histogram saw which values."""
    target = _target(Query(expression, "{{le}}"), 0).format(prometheus.PromQueryFormat.HEATMAP)
    panel = build_heatmap.Panel().title(title).description(description).unit("short").datasource(DATASOURCE)
    panel.span(width).height(8).targets([target]).calculate(False).cell_gap(1)
    panel.hide_from(build.HideSeriesConfig().legend(False).tooltip(False).viz(False))
    panel.y_axis(build_heatmap.YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
    panel.color(
        build_heatmap.HeatmapColorOptions()
        .mode(heatmap.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .scale(heatmap.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
    )
    panel.filter_values(build_heatmap.FilterValueRange().le(1e-9)).mode(common.TooltipDisplayMode.SINGLE)
    return panel.show_legend().build()


def stat(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 3,
    steps: Sequence[tuple[float, str]] = (),
    lowest: str = "green",
    mappings: Mapping[str, tuple[str, str]] | None = None,
) -> dashboard.Panel:
    """One number, or a few. steps: (from this value, this colour), beside `lowest`. mappings: text and colour."""
    panel = build_stat.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE).no_value("–")
    panel.span(width).height(4).targets(_targets(queries))
    panel.reduce_options(build.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.color_mode(common.BigValueColorMode.VALUE).graph_mode(common.BigValueGraphMode.AREA)
    panel.thresholds(_thresholds(steps, lowest))
    if mappings:
        panel.mappings([values_shown(mappings)])
    return panel.build()


def table(
    title: str,
    description: str,
    queries: Sequence[str],
    columns: Sequence[Column],
    *,
    sort: str,
    number: bool = False,
    height: int = 8,
    width: int = COLUMNS,
) -> dashboard.Panel:
    """The state now, a line for each set of labels. sort: the label by which lines stand; number: that label is one."""
    panel = build_table.Panel().title(title).description(description).unit("none").datasource(DATASOURCE)
    panel.span(width).height(height).no_value("–").filterable(True)
    panel.targets(
        [
            _target(Query(query), place).format(prometheus.PromQueryFormat.TABLE).instant()
            for place, query in enumerate(queries)
        ]
    )
    fields = [_field(column, alone=len(queries) == 1) for column in columns]
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    if number:
        conversion = {"targetField": sort, "destinationType": "number"}
        panel.with_transformation(
            dashboard.DataTransformerConfig(
                id_val="convertFieldType", options={"fields": {}, "conversions": [conversion]}
            )
        )
    panel.with_transformation(
        dashboard.DataTransformerConfig(id_val="sortBy", options={"fields": {}, "sort": [{"field": sort}]})
    )
    panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True} if any(_is_query(column) for column in columns) else _LABELS_ONLY,
                "indexByName": {name: place for place, name in enumerate(fields)},
                "renameByName": {name: column.title for name, column in zip(fields, columns, strict=True)},
            },
        )
    )
    for column in columns:
        settings = {"unit": column.unit, **column.settings} if _is_query(column) else dict(column.settings)
        if settings:
            panel.override_by_name(
                column.title,
                [dashboard.DynamicConfigValue(id_val=name, value=value) for name, value in settings.items()],
            )
    return panel.build()


_LABELS_ONLY = {"Time": True, "Value": True}
# Of a column: a bar within its cell.
GAUGE = {"custom.cellOptions": {"type": "gauge", "mode": "basic"}, "min": 0, "max": 1}


def _is_query(column: Column) -> bool:
    return len(column.source) == 1


def _field(column: Column, *, alone: bool) -> str:
    """As Grafana names it once the answers of all queries are merged."""
    if not _is_query(column):
        return column.source
    return "Value" if alone else f"Value #{column.source}"


def in_colours(mappings: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The settings of a column whose values are shown as (text, colour)."""
    return {
        "mappings": [values_shown(mappings).to_json()],
        "custom.cellOptions": {"type": "color-text"},
    }


def values_shown(mappings: Mapping[str, tuple[str, str]]) -> dashboard.ValueMap:
    results = {
        value: dashboard.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(mappings.items())
    }
    return dashboard.ValueMap(options=results)


def threshold_setting(steps: Sequence[tuple[float, str]], lowest: str) -> dict[str, Any]:
    """The settings of a column whose text has the colour of its value."""
    return {"thresholds": _thresholds(steps, lowest).build().to_json(), "custom.cellOptions": {"type": "color-text"}}


def _thresholds(steps: Sequence[tuple[float, str]], lowest: str) -> build_dashboard.ThresholdsConfig:
    found = [dashboard.Threshold(value=None, color=lowest)]
    found += [dashboard.Threshold(value=value, color=colour) for value, colour in steps]
    return build_dashboard.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(found)


def _targets(queries: Iterable[Query]) -> list[build_prometheus.Dataquery]:
    return [_target(query, number) for number, query in enumerate(queries)]


def _target(query: Query, number: int) -> build_prometheus.Dataquery:
    target = build_prometheus.Dataquery().expr(query.expression).ref_id(_REF_IDS[number]).datasource(DATASOURCE)
    target.editor_mode(prometheus.QueryEditorMode.CODE).range()
    return target.legend_format(query.legend) if query.legend else target


# --- Variables and the whole ------------------------------------------------------------------------------------------


def datasource_variable() -> dashboard.VariableModel:
    variable = build_dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return variable.description("The Prometheus that scrapes pipes and the operator.").build()


def labels_variable(
    name: str,
    label: str,
    description: str,
    series: str,
    of_label: str,
    *,
    several: bool = False,
    number: bool = False,
) -> dashboard.VariableModel:
    """The values of a label of these series. several: more than one may be chosen, and at first all are."""
    variable = build_dashboard.QueryVariable(name).label(label).description(description).datasource(DATASOURCE)
    variable.query({"query": f"label_values({series}, {of_label})", "refId": "StandardVariableQuery"})
    variable.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    variable.sort(dashboard.VariableSort.NUMERICAL_ASC if number else dashboard.VariableSort.ALPHABETICAL_ASC)
    if several:
        variable.multi(True).include_all(True).all_value(ALL)
        variable.current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return variable.build()


def page(
    *,
    uid: str,
    title: str,
    description: str,
    variables: Iterable[dashboard.VariableModel],
    rows: Iterable[Row],
) -> dashboard.Dashboard:
    builder = build_dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).timezone("browser")
    builder.time("now-1h", "now").refresh("30s").tooltip(dashboard.DashboardCursorSync.CROSSHAIR).editable()
    builder.link(
        build_dashboard.DashboardLink("Language Pipes")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .keep_time(True)
        .icon("external link")
    )
    whole = builder.build()
    whole.templating = dashboard.DashboardDashboardTemplating(list_val=[datasource_variable(), *variables])
    whole.panels = list(placed(rows))
    return whole


def placed(rows: Iterable[Row]) -> Iterator[dashboard.Panel | dashboard.RowPanel]:
    """Rows and panels with place and id: from left to right, and what does not fit into a line begins a new one."""
    line = 0
    for row in rows:
        yield dashboard.RowPanel(
            title=row.title, id_val=_id(row.title), repeat=row.repeat, grid_pos=_place(0, line, COLUMNS, 1), panels=[]
        )
        line += 1
        column = tallest = 0
        for panel in row.panels:
            assert panel.grid_pos is not None, "every kind of panel has a size"
            width, height = panel.grid_pos.w, panel.grid_pos.h
            if column + width > COLUMNS:
                line, column, tallest = line + tallest, 0, 0
            panel.grid_pos = _place(column, line, width, height)
            panel.id_val = _id(f"{row.title}/{panel.title}")
            column, tallest = column + width, max(tallest, height)
            yield panel
        line += tallest


def _place(x: int, y: int, w: int, h: int) -> dashboard.GridPos:
    return dashboard.GridPos(x=x, y=y, w=w, h=h)


def _id(name: str) -> int:
    """Of the name alone, so that links to a panel lead there also after others were added."""
    return zlib.crc32(name.encode()) % 1_000_000 + 1
