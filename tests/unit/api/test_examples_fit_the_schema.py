"""Every example is a resource that the API server and `languagepipes` take."""

from __future__ import annotations

import re

import jsonschema
import pytest
import yaml
from languagepipes_api.spec import load_pipe
from support.crd_judge import ApiServer, Json
from support.paths import ROOT

# The pipes, by file; one file may hold other objects beside its pipe.
EXAMPLES = {
    file.relative_to(ROOT / "examples").as_posix(): document
    for file in sorted((ROOT / "examples").rglob("*.yaml"))
    for document in re.split(r"^---\n", file.read_text(), flags=re.MULTILINE)
    if "\nkind: LanguagePipe\n" in document
}


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_an_example_is_accepted(text: str, crd: Json, api_server: ApiServer) -> None:
    resource = yaml.safe_load(text)
    here = resource["spec"]["model"]["source"].startswith("file://")

    jsonschema.validate(resource, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert load_pipe(text, local=here).name == resource["metadata"]["name"]
    # A file on this machine is for `languagepipes up`; the API server says so.
    assert api_server.problems(resource) == (
        ["source must start with hf://, pvc:// or https:// (file:// is for `languagepipes up` alone)"] if here else []
    )


def test_there_are_examples() -> None:
    assert {"qwen3-8b.yaml", "mixed-gpu-cpu.yaml", "smollm2-cluster.yaml", "mesh/istio.yaml"} <= EXAMPLES.keys()
