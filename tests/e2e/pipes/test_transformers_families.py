"""The families that transformers' layers compute are served from the image as every other one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest
from support.installation import Installation
from support.kubectl import Kubectl
from support.serving import SMALL, Client, Images, copy_to_claim, pipe, wait_ready
from support.transformers_families import CONTEXT, FAMILIES, FamilyModel

pytestmark = pytest.mark.kubernetes
QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class World:
    """A namespace with a claim in which the models are, and a client."""

    kubectl: Kubectl
    client: Client
    models: dict[str, FamilyModel]


@pytest.fixture(scope="module")
def world(
    operator: Installation,
    namespace: Callable[[str], AbstractContextManager[Kubectl]],
    images: Images,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("families")
    models = {family: FamilyModel.write(family, folder / family) for family in FAMILIES}
    with namespace("families") as kubectl:
        copy_to_claim(kubectl, images, "families", [model.path for model in models.values()])
        yield World(kubectl, Client(kubectl, images), models)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_the_family_answers_as_unsplit_transformers_does(world: World, family: str) -> None:
    name = family.replace("_", "-")
    source = {"source": f"pvc://families/{family}", "maxContextLength": CONTEXT}
    world.kubectl.apply(pipe(name, model=source, stages={"count": 2, "template": SMALL}))
    url = wait_ready(world.kubectl, name)["status"]["url"]

    streamed = world.client.ask(url, QUESTION, model=name, max_tokens=32)

    expected = world.models[family].answer(QUESTION, 32)
    assert len(set(expected)) >= 8  # else it would say little
    assert "".join(streamed) == expected
    pods = world.kubectl.list("pods", f"languagepipes.io/pipe={name}")
    assert len(pods) == 4
    assert all(status["restartCount"] == 0 for pod in pods for status in pod["status"]["containerStatuses"])
    world.kubectl("delete", "languagepipe", name)
