"""Every value is commented, in the schema and used; wrong ones are refused by name."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.helm_chart import CHART, KUBERNETES, ROOT, VARIANTS, refusal, run


def paths(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Of all values, and of none below what is FREE."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict) and ".".join((*path, key)) not in FREE:
            yield from paths(value, (*path, key))


def is_leaf(path: tuple[str, ...]) -> bool:
    return ".".join(path) in FREE or value_of(path) == {} or not isinstance(value_of(path), dict)


def value_of(path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda value, key: value[key], path, DEFAULTS)


DEFAULTS: Any = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# What users fill with keys of their own, or Kubernetes with its: nothing below is the chart's.
FREE = {"nodeSelector", "affinity", "podLabels", "podAnnotations", "dashboards.labels"}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, ["additional properties 'replica' not allowed"]),
        ({"crds": {"keep": True}}, ["'/crds'", "'keep' not allowed"]),
        ({"replicas": "two"}, ["'/replicas'", "got string, want integer"]),
        ({"replicas": -1}, ["'/replicas'", "minimum"]),
        ({"namespaces": "team-a"}, ["'/namespaces'", "got string, want array"]),
        ({"namespaces": ["Team_A"]}, ["'/namespaces/0'", "does not match pattern"]),
        ({"namespaces": ["a", "a"]}, ["'/namespaces'", "equal"]),
        ({"hub": {"endpoint": "hub.example"}}, ["'/hub/endpoint'"]),
        ({"hub": {"endpoint": "https://hub.example:99999"}}, ["'/hub/endpoint'", "does not match pattern"]),
        ({"hub": {"endpoint": "https://hub.example:0/x"}}, ["'/hub/endpoint'", "does not match pattern"]),
        ({"hub": {"caBundle": "/etc/ssl/ca.crt"}}, ["'/hub/caBundle'", "does not match pattern"]),
        ({"hub": {"caBundle": f"{CERTIFICATE}-----BEGIN EC PRIVATE KEY-----"}}, ["'/hub/caBundle'", "'not' failed"]),
        ({"hub": {"caBundle": CERTIFICATE * 1200}}, ["'/hub/caBundle'", "maxLength"]),
        ({"hub": {"proxy": "proxy:3128"}}, ["'/hub/proxy'", "does not match pattern"]),
        ({"hub": {"proxy": "http://proxy:99999"}}, ["'/hub/proxy'", "does not match pattern"]),
        ({"hub": {"proxy": "http://user:word@proxy:3128"}}, ["'/hub/proxy'", "does not match pattern"]),
        ({"hub": {"noProxy": ".svc, a.example"}}, ["'/hub/noProxy'", "does not match pattern"]),
        ({"image": {"pullPolicy": "Sometimes"}}, ["'/image/pullPolicy'", "'Always', 'IfNotPresent', 'Never'"]),
        ({"image": {"repository": "operator:1.0"}}, ["'/image/repository'", "does not match pattern"]),
        ({"image": {"digest": "abc"}}, ["'/image/digest'", "does not match pattern"]),
        ({"nodeImage": {"tag": "a b"}}, ["'/nodeImage/tag'", "does not match pattern"]),
        ({"nodeImage": {"registry": "x"}}, ["'/nodeImage'", "'registry' not allowed"]),
        ({"imagePullSecrets": ["registry"]}, ["'/imagePullSecrets/0'", "got string, want object"]),
        ({"nodeImage": {"pullSecrets": [{"name": "a"}, {"name": "a"}]}}, ["'/nodeImage/pullSecrets'", "equal"]),
        ({"nodeImage": {"pullSecrets": [{"name": "A"}]}}, ["'/nodeImage/pullSecrets/0/name'", "pattern"]),
        ({"enabled": "yes"}, ["'/enabled'", "got string, want boolean"]),
        ({"extraEnv": [{"name": "LANGUAGEPIPES_OPERATOR_IDENTITY"}]}, ["'/extraEnv/0/name'", "'not' failed"]),
        ({"extraEnv": {"A": "b"}}, ["'/extraEnv'", "got object, want array"]),
        ({"extraVolumes": [{"name": "tmp"}]}, ["'/extraVolumes/0/name'", "'not' failed"]),
        ({"extraVolumeMounts": [{"name": "a", "mountPath": "/tmp"}]}, ["'/extraVolumeMounts/0/mountPath'"]),
        ({"serviceAccount": {"annotations": {"a": 1}}}, ["'/serviceAccount/annotations/a'", "want string"]),
        ({"logLevel": "loud"}, ["'/logLevel'", "'debug', 'info', 'warning', 'error'"]),
        ({"rbac": {"create": "no"}}, ["'/rbac/create'", "got string, want boolean"]),
        ({"securityContext": {"fixedIds": "no"}}, ["'/securityContext/fixedIds'", "got string, want boolean"]),
        ({"resources": {"request": {}}}, ["'/resources'", "'request' not allowed"]),
        ({"podLabels": {"a": 1}}, ["'/podLabels/a'", "got number, want string"]),
        ({"serviceMonitor": {"interval": "30"}}, ["'/serviceMonitor/interval'", "does not match pattern"]),
        ({"podMonitor": {"interval": "30"}}, ["'/podMonitor/interval'", "does not match pattern"]),
        ({"prometheusRule": {"runbookUrl": "a#b"}}, ["'/prometheusRule/runbookUrl'", "does not match pattern"]),
        ({"prometheusRule": {"thresholds": {"quantile": 95}}}, ["'/prometheusRule/thresholds/quantile'"]),
        ({"prometheusRule": {"thresholds": {"timeToFirstTokenSeconds": 60}}}, ["/timeToFirstTokenSeconds'"]),
        ({"prometheusRule": {"thresholds": {"storeStuck": 30}}}, ["/storeStuck'", "want string"]),
        ({"dashboards": {"labels": {"grafana_dashboard": 1}}}, ["'/dashboards/labels/grafana_dashboard'", "string"]),
        ({"dashboards": {"folder": "a"}}, ["'/dashboards'", "'folder' not allowed"]),
        ({"networkPolicy": {"apiServerPorts": [0]}}, ["'/networkPolicy/apiServerPorts/0'", "minimum"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(values: Mapping[str, Any], words: list[str]) -> None:
    said = refusal(values)

    for word in words:
        assert word in said


@pytest.mark.parametrize("enabled", [True, False])
def test_a_chart_that_this_one_is_a_part_of_turns_it_on_and_off_by_a_condition(tmp_path: Path, enabled: bool) -> None:
    dependency = {"name": "languagepipes", "version": "*", "condition": "languagepipes.enabled"}
    umbrella = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(umbrella))
    shutil.copytree(CHART, tmp_path / "charts" / "languagepipes")

    answer = run(
        "template", "lp", tmp_path, "--kube-version", KUBERNETES, values={"languagepipes": {"enabled": enabled}}
    )

    assert (answer.returncode, answer.stderr) == (0, "")
    assert ("kind: Deployment" in answer.stdout) == enabled


@pytest.mark.parametrize("name", VARIANTS)
def test_helm_lint_has_nothing_to_say_but_that_there_is_no_icon(name: str) -> None:
    answer = run("lint", CHART, "--strict", "--kube-version", "1.37.2", values=VARIANTS[name])

    said = [line for line in answer.stdout.splitlines() if line.startswith("[")]
    assert (answer.returncode, said) == (0, ["[INFO] Chart.yaml: icon is recommended"]), answer.stdout


def test_the_schema_knows_exactly_the_values_that_there_are() -> None:
    def known(schema: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        if path:
            yield path
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
        for key, below in schema.get("properties", {}).items():
            yield from known(below, (*path, key))

    there = {path for path in paths(DEFAULTS) if path[0] != "resources" or len(path) <= 2}
    # Helm sets the first, and charts that this one is a part of the second.
    assert set(known(SCHEMA)) - {("global",), ("enabled",)} == there


def test_every_value_has_a_comment_above_it_or_above_its_group() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-zA-Z]", line):
            above, below = lines[number - 1], lines[number + 1] if number + 1 < len(lines) else ""
            in_a_commented_block = above.strip() != "" and not above.startswith("#")
            assert above.startswith("#") or below.strip().startswith("#") or in_a_commented_block, line


def test_every_value_is_used_by_a_template() -> None:
    templates = "\n".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    handed_on_whole = {"image", "nodeImage", "resources"}
    leaves = [path for path in paths(DEFAULTS) if path[0] not in handed_on_whole and is_leaf(path)]

    unused = [path for path in leaves if ".Values." + ".".join(path) not in templates]

    assert unused == []


def test_the_charts_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert (chart["version"], chart["appVersion"]) == (project, project)


def test_the_documentation_lists_every_value_with_its_default() -> None:
    documented = dict(
        re.findall(r"^\| `([\w.]+)` \| `(.*?)` \|", (ROOT / "docs" / "chart.md").read_text(), re.MULTILINE)
    )

    leaves = {
        ".".join(path): value_of(path)
        for path in paths(DEFAULTS)
        if (len(path) == 1 if path[0] == "resources" else is_leaf(path))
    }
    assert {name: yaml.safe_load(shown) for name, shown in documented.items()} == {
        name: None if value == "" else value for name, value in leaves.items()
    }
