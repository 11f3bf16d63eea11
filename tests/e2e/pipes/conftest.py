"""A real cluster, our images on it, the operator installed by the chart, and a pipe that serves SmolLM2.

E2E_KUBECONFIG runs these tests on any other cluster (kind, k3s, a cloud); then E2E_NODE_IMAGE, E2E_OPERATOR_IMAGE,
E2E_CLIENT_IMAGE and E2E_MODELS_IMAGE name images that its nodes can pull.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster import Cluster, programs
from support import built_images, greedy
from support.built_images import NAMES
from support.installation import Installation
from support.kubectl import Kubectl
from support.paths import ROOT, SMOLLM2
from support.serving import Client, Images, fill_claim, pipe, wait_condition, wait_ready


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests come last, since a cluster that idles beside others would take their processors; the main job is the
    first of them, and what cuts nodes off and restarts operators comes after what only looks.
    """
    order = ("test_main_job", "test_operator_metrics", "test_connections")

    def place(item: pytest.Item) -> int:
        if Path(__file__).parent not in item.path.parents:
            return -1
        return order.index(item.path.stem) if item.path.stem in order else len(order)

    for item in items:
        if place(item) >= 0:
            item.add_marker(pytest.mark.kubernetes)
            item.add_marker(pytest.mark.timeout(1800))
    items.sort(key=place)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster | None]:
    """Two real nodes with our images; None where E2E_KUBECONFIG names another cluster."""
    if "E2E_KUBECONFIG" in os.environ:
        yield None
        return
    archives = built_images.archives()
    kept = os.environ.get("E2E_LOGS")
    with Cluster(images=[archives[name] for name in NAMES], keep_logs=Path(kept) if kept else None) as running:
        yield running


@pytest.fixture(scope="session")
def our_cluster(cluster: Cluster | None) -> Cluster:
    """For tests that cut nodes off or add some: they need the cluster that we run ourselves."""
    if cluster is None:
        pytest.skip("needs the cluster of tests/cluster, not E2E_KUBECONFIG")
    return cluster


@pytest.fixture(scope="session")
def admin(cluster: Cluster | None) -> Kubectl:
    kubeconfig = Path(os.environ["E2E_KUBECONFIG"]) if cluster is None else cluster.kubeconfig
    return Kubectl(programs.kubectl(), kubeconfig)


@pytest.fixture(scope="session")
def images(cluster: Cluster | None) -> Images:
    if cluster is None:
        return Images(**{name: os.environ[f"E2E_{name.upper()}_IMAGE"] for name in NAMES})
    return Images(**built_images.tags())


@pytest.fixture(scope="session")
def operator(admin: Kubectl, images: Images) -> Iterator[Installation]:
    """The operator, installed cluster-wide."""
    installation = Installation(admin, programs.helm(), images)
    installation.install()
    yield installation
    logs = os.environ.get("E2E_LOGS")
    if logs:
        Path(logs).mkdir(parents=True, exist_ok=True)
        Path(logs, "operator.log").write_text(installation.logs())
    installation.uninstall()


@pytest.fixture(scope="session")
def namespace(admin: Kubectl) -> Callable[[str], AbstractContextManager[Kubectl]]:
    """Makes namespaces that enforce the restricted Pod Security profile, each for one `with`: what is left in it would
    take processors from later tests, and their metrics and alerts would count it.
    """
    numbers = itertools.count(1)

    @contextmanager
    def make(purpose: str) -> Iterator[Kubectl]:
        name = f"e2e-{next(numbers)}-{purpose}"
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        try:
            yield admin.within(name)
        finally:
            admin("delete", "namespace", name, "--ignore-not-found", "--wait=false")

    return make


@pytest.fixture
def new_namespace(namespace: Callable[[str], AbstractContextManager[Kubectl]]) -> Iterator[Callable[[str], Kubectl]]:
    """Makes namespaces for one test."""
    with ExitStack() as made:
        yield lambda purpose: made.enter_context(namespace(purpose))


@pytest.fixture(scope="session")
def home(
    operator: Installation, namespace: Callable[[str], AbstractContextManager[Kubectl]], images: Images
) -> Iterator[Kubectl]:
    """The namespace of the pipe that most tests share, with its weights."""
    with namespace("main") as kubectl:
        fill_claim(kubectl, images)
        kubectl.apply(pipe())
        yield kubectl


@pytest.fixture
def smollm2(home: Kubectl) -> Kubectl:
    """The namespace in which SmolLM2 is served over three stages; each test finds it Ready, and no replica going."""
    wait_ready(home)
    wait_condition(home, "Progressing", "False", reason="Complete")
    return home


@pytest.fixture(scope="session")
def client(home: Kubectl, images: Images) -> Client:
    return Client(home, images)


@pytest.fixture(scope="session")
def greedy_answers() -> list[str]:
    """What unsplit transformers answers in float32, reading the same GGUF file by its own code."""
    assert SMOLLM2.exists(), f"{SMOLLM2.relative_to(ROOT)} is not there: run `make model`"
    return greedy.answers(SMOLLM2)
