"""Every example is a resource that the API server and `languagepipes` take."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from languagepipes_api.spec import load_pipe
from support.crd_judge import ApiServer, Json
from support.paths import ROOT

EXAMPLES = sorted(file for file in (ROOT / "examples").glob("*.yaml") if "kind: LanguagePipe\n" in file.read_text())


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_is_accepted(file: Path, crd: Json, api_server: ApiServer) -> None:
    text = file.read_text()
    resource = yaml.safe_load(text)
    here = resource["spec"]["model"]["source"].startswith("file://")

    jsonschema.validate(resource, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert load_pipe(text, local=here).name == resource["metadata"]["name"]
    # A file on this machine is for `languagepipes up`; the API server says so.
    assert api_server.problems(resource) == (
        ["source must start with hf://, pvc:// or https:// (file:// is for `languagepipes up` alone)"] if here else []
    )


def test_there_are_examples() -> None:
    assert {"qwen3-8b.yaml", "mixed-gpu-cpu.yaml", "smollm2-cluster.yaml"} <= {file.name for file in EXAMPLES}
