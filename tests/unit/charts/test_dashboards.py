"""The chart's Grafana dashboards: they are what the generator writes, what Grafana reads, and ask for what there is."""

from __future__ import annotations

import enum
import itertools
import json
import re
import typing
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from languagepipes_api.status import ConditionType
from languagepipes_node.end_model.openai.errors import QueueFull
from support.dashboards import FOLDER, NAMES, Json, load, panels, queries, series_of_variables, variables_in
from support.exported_metrics import named_in, unknown_in
from support.generated_files import assert_up_to_date

COLUMNS = 24


@pytest.fixture(params=NAMES)
def dashboard(request: pytest.FixtureRequest) -> Json:
    return load(request.param)


def test_the_files_are_what_the_generator_writes() -> None:
    assert_up_to_date("generate_dashboards.py")
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in NAMES}


# --- As Grafana reads them --------------------------------------------------------------------------------------------


def test_every_field_is_one_of_grafanas_types_and_has_its_type(dashboard: Json) -> None:
    """The SDK's from_json drops what it does not know, and believes the rest."""
    plugins.register_default_plugins()

    loaded = Dashboard.from_json(dashboard)

    assert json.loads(json.dumps(loaded, cls=JSONEncoder)) == dashboard
    assert list(of_wrong_type(loaded, Dashboard, "dashboard")) == []


def of_wrong_type(value: object, hint: Any, path: str) -> Iterator[str]:
    """Paths whose values are not what the SDK's models annotate. What is annotated as object has its own class."""
    origin, arguments = typing.get_origin(hint), get_args(hint)
    if origin is typing.Union:
        possible = [each for each in arguments if each is type(value)] or arguments
        alternatives = [list(of_wrong_type(value, each, path)) for each in possible]
        if all(alternatives):
            yield from alternatives[0]
    elif origin is typing.Literal:
        if value not in arguments:
            yield f"{path}: {value!r}"
    elif origin is list and isinstance(value, list):
        for number, each in enumerate(value):
            yield from of_wrong_type(each, arguments[0], f"{path}[{number}]")
    elif origin is dict and isinstance(value, dict):
        for key, each in value.items():
            yield from of_wrong_type(each, arguments[1], f"{path}.{key}")
    elif isinstance(hint, type) and issubclass(hint, enum.Enum):
        if value not in [each.value for each in hint]:
            yield f"{path}: {value!r}"
    elif hint is float:
        if not isinstance(value, int | float):
            yield f"{path}: {value!r}"
    elif isinstance(value, dict) and hasattr(hint, "from_json"):  # from_json leaves transformations as they are
        yield from of_wrong_type(hint.from_json(value), hint, path)
    elif not isinstance(hint, type) or not isinstance(value, hint):
        yield f"{path}: {value!r} is no {hint}"
    elif type(value).__module__.startswith("grafana_foundation_sdk.") and not isinstance(value, enum.Enum):
        hints = typing.get_type_hints(type(value))
        for name, each in vars(value).items():
            yield from of_wrong_type(each, hints[name], f"{path}.{name}")


def test_a_value_of_another_type_or_enumeration_is_found() -> None:
    plugins.register_default_plugins()
    wrong = load("pipe")
    wrong["panels"][1]["title"] = 5
    wrong["panels"][1]["options"]["colorMode"] = "loud"

    found = list(of_wrong_type(Dashboard.from_json(wrong), Dashboard, "dashboard"))

    assert found == [
        "dashboard.panels[1].title: 5 is no <class 'str'>",
        "dashboard.panels[1].options.color_mode: 'loud'",
    ]


def test_panels_stand_in_the_grid_and_on_no_other(dashboard: Json) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]

    for place in places:
        assert place["x"] >= 0
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] + place["w"] <= COLUMNS, place
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


def test_names_by_which_links_lead_to_dashboards_and_panels_are_unique_and_stay() -> None:
    dashboards = {name: load(name) for name in NAMES}

    assert {name: each["uid"] for name, each in dashboards.items()} == {
        "fleet": "languagepipes-fleet",
        "pipe": "languagepipes-pipe",
    }
    for each in dashboards.values():
        assert "id" not in each, "an id is of one Grafana"
        ids = [panel["id"] for panel in each["panels"]]
        assert len(set(ids)) == len(ids)
        titles = [panel["title"] for panel in panels(each)]
        assert len(set(titles)) == len(titles)
    # Of the panel's name, and not of its place.
    assert next(panel["id"] for panel in dashboards["pipe"]["panels"] if panel["title"] == "Hops") == 117601


def test_every_panel_says_what_it_shows_in_which_unit_and_asks_the_chosen_data_source(dashboard: Json) -> None:
    for panel in panels(dashboard):
        title = panel["title"]
        assert re.search(r"\w.*[.?]$", panel["description"]), title
        assert len(re.findall(r"[.?](?: |$)", panel["description"])) >= 2, f"{title}: what it shows, and what to do"
        assert panel["fieldConfig"]["defaults"]["unit"], title
        assert panel["targets"], title
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert source == {"type": "prometheus", "uid": "${datasource}"}, title
        ref_ids = [target["refId"] for target in panel["targets"]]
        assert len(set(ref_ids)) == len(ref_ids), title


def test_links_lead_to_a_dashboard_that_there_is_and_give_it_variables_that_it_has() -> None:
    variables = {
        each["uid"]: {variable["name"] for variable in each["templating"]["list"]} for each in map(load, NAMES)
    }
    links = re.findall(r'"(/d/[^"]+)"', json.dumps([load(name) for name in NAMES]))

    assert links
    for link in links:
        uid, _, asked = link.removeprefix("/d/").partition("?")
        assert set(re.findall(r"var-(\w+)=", asked)) <= variables[uid]


# --- What they ask for ------------------------------------------------------------------------------------------------


def test_the_data_source_is_chosen_and_every_variable_is_one_of_the_dashboard_or_of_grafana(dashboard: Json) -> None:
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}

    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    used = {name for panel in panels(dashboard) for target in panel["targets"] for name in variables_in(target["expr"])}
    assert used - {"__rate_interval"} == variables.keys() - {"datasource"}
    repeated = {panel["repeat"] for panel in dashboard["panels"] if "repeat" in panel}
    assert repeated <= variables.keys()


def test_rates_are_over_grafanas_interval_for_them(dashboard: Json) -> None:
    windows = [window for panel in panels(dashboard) for target in panel["targets"]
               for window in re.findall(r"\[(.*?)\]", re.sub(r'"[^"]*"', "", target["expr"]))]  # fmt: skip

    assert set(windows) == {"$__rate_interval"}


def test_every_metric_and_label_is_one_that_our_code_exports_or_prometheus_has() -> None:
    assert {query.name: unknown_in(query.expression) for query in queries() if unknown_in(query.expression)} == {}
    for name, (series, label) in series_of_variables().items():
        assert unknown_in(f"count by ({label}) ({series})") == [], name


def test_every_value_of_a_label_that_is_asked_for_is_one_that_there_is() -> None:
    text = "\n".join(query.expression for query in queries())

    def asked(label: str) -> set[str]:
        return {value for found in re.findall(rf'\b{label}=~?"([^"]*)"', text) for value in found.split("|")}

    assert asked("condition") == {"Ready", "EndpointReady"}
    assert asked("condition") <= set(get_args(ConditionType))
    assert asked("outcome") == {QueueFull.outcome, "silent"}
    assert asked("role") == {"end-model", "stage"}
    assert asked("direction") == {"sent", "received"}


def test_names_in_an_expression_are_found_wherever_they_stand() -> None:
    found = named_in(
        'label_replace(sum by (a, le) (rate(x_total{b="c{}", d=~"e"}[5m])), "made", "$1", "f", "(.*)")'
        " / on (made, g) group_left () (y:z:rate5m > 1e-9) and on (job) up unless min(1, time()) == 0.5"
    )

    assert found.metrics == {"x_total": {"b", "d"}, "y:z:rate5m": set(), "up": set()}
    assert found.labels == {"a", "le", "f", "g", "job"}


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("languagepipes_ring_readdy", ["no metric 'languagepipes_ring_readdy'"]),
        ('languagepipes_ring_ready{reason="a"}', ["no label 'reason' of languagepipes_ring_ready"]),
        ("sum by (reason) (languagepipes_ring_ready)", ["no label 'reason'"]),
        ("languagepipes_time_to_first_token_seconds", ["no metric 'languagepipes_time_to_first_token_seconds'"]),
        ("vector(0)", ["no metric at all"]),
        ("sum by (reason, pipe) (languagepipes_ring_epochs_total)", []),
    ],
)
def test_what_nobody_exports_is_found(expression: str, said: list[str]) -> None:
    assert unknown_in(expression) == said
