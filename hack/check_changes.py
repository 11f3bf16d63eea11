#!/usr/bin/env python3
"""Every change of a pipe under 32 streams on the test cluster: no request fails.

    sudo .venv/bin/python hack/check_changes.py [--streams 32] [--only source dtype …] [--logs FOLDER]

Streams go through the pipe's Service from a client's pod, half on kept connections: before, during and after each
change. Prints a Markdown table, one row a change: requests, how many failed, seconds from the change to the end of its
rollout, and the longest time in which a stream got no text. Greedy answers must be the same throughout (a change of
dtype or quantization may bring other texts to each question). Exit 1 if a request failed or a change did not end.
tests/e2e/pipes has some of these with eight streams in CI; these are too slow for it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cluster import Cluster, programs  # noqa: E402
from cluster.build import build_metrics_server  # noqa: E402
from support.built_images import archives, tags  # noqa: E402
from support.installation import Installation  # noqa: E402
from support.kubectl import Kubectl, wait_for  # noqa: E402
from support.resource_metrics import ResourceMetrics  # noqa: E402
from support.serving import MODEL_FILE, SMALL, Client, Images, fill_claim, pipe, wait_condition, wait_ready  # noqa: E402
from support.streams import MEMBERS, failures, members, replicas, rolled_out, said_to, stores, streams  # noqa: E402

# The images under test once more, as another version's would be named.
NEW_TAG = "after"
OTHER_CLAIM = "other-models"
LIMIT_SECONDS = 600.0
STAGES: dict[str, Any] = {"count": 2, "template": SMALL}


@dataclass
class Scene:
    """The pipe as it was applied last, and who can change it."""

    kubectl: Kubectl
    cluster: Cluster
    operator: Installation
    newer: Installation
    spec: dict[str, Any] = field(default_factory=dict)

    def apply(self, **spec: Any) -> None:
        self.spec |= spec
        self.kubectl.apply(pipe(**self.spec))

    def finished(self, count: int = 1) -> None:
        """Wait until the rollout is."""
        rolled_out(self.kubectl, count, timeout_seconds=LIMIT_SECONDS)

    def wait_surge(self) -> None:
        """Wait until the replica of the new revision is there."""
        wait_for("a replica beside the old", lambda: len(replicas(self.kubectl)) == 2)


def source(scene: Scene) -> None:
    """The same weights from another claim: a store of its own."""
    scene.apply(model={**scene.spec.get("model", {}), "source": f"pvc://{OTHER_CLAIM}/{MODEL_FILE}"})
    scene.wait_surge()
    assert len(stores(scene.kubectl)) == 2, stores(scene.kubectl)
    scene.finished()


def dtype(scene: Scene) -> None:
    scene.apply(model={**scene.spec.get("model", {}), "dtype": "bfloat16"})
    scene.finished()


def quantization(scene: Scene) -> None:
    scene.apply(model={**scene.spec.get("model", {}), "quantization": "int8"})
    scene.finished()


def server(scene: Scene) -> None:
    scene.apply(server={"maxQueuedRequests": 300})
    scene.finished()


def template(scene: Scene) -> None:
    scene.apply(stages={**STAGES, "template": {"resources": {"requests": {"cpu": "110m"}}}})
    scene.finished()


def upgrade(scene: Scene) -> None:
    """The operator's Deployment rolls while a rollout is under way; the pipe keeps its node image."""
    scene.apply(server={"maxQueuedRequests": 301})
    scene.wait_surge()
    before = scene.operator.leader()
    scene.newer.install()
    scene.newer.wait_acting(other_than={before})
    scene.finished()
    assert not runs(scene.kubectl, NEW_TAG)


def image(scene: Scene) -> None:
    """After `upgrade`: the newer operator's node image, as people ask for it."""
    scene.newer.install()
    scene.kubectl("annotate", "lp/smollm2", f"languagepipes.io/upgrade={time.time():.0f}", "--overwrite")
    scene.wait_surge()
    scene.finished()
    assert runs(scene.kubectl, NEW_TAG)


def scale(scene: Scene) -> None:
    """1 → 3 → 1."""
    scene.kubectl("scale", "lp/smollm2", "--replicas=3")
    scene.finished(3)
    scene.kubectl("scale", "lp/smollm2", "--replicas=1")
    scene.finished()


def autoscaled(scene: Scene) -> None:
    """1 → 2 → 1 by a HorizontalPodAutoscaler: what each End Model uses is more than its target, then less."""
    horizontal = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "smollm2"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "languagepipes.io/v1alpha1", "kind": "LanguagePipe", "name": "smollm2"},
            "minReplicas": 1,
            "maxReplicas": 2,
            "metrics": [cpu_of_each("1m")],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
    admin = replace(scene.kubectl, namespace=None)
    with TemporaryDirectory() as folder, ResourceMetrics(admin, scene.cluster, Path(folder)):
        scene.kubectl.apply(horizontal)
        wait_for("two replicas by the autoscaler", lambda: asked(scene) == 2, timeout_seconds=LIMIT_SECONDS)
        scene.finished(2)
        horizontal["spec"] |= {"metrics": [cpu_of_each("1k")]}  # type: ignore[operator]
        scene.kubectl.apply(horizontal)
        wait_for("one replica by the autoscaler", lambda: asked(scene) == 1, timeout_seconds=LIMIT_SECONDS)
        scene.finished()
        scene.kubectl("delete", "hpa", "smollm2")


def cpu_of_each(quantity: str) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": quantity}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def asked(scene: Scene) -> int:
    """How many replicas the spec asks for."""
    return int(scene.kubectl.get("lp", "smollm2")["spec"].get("replicas", 1))


def split(scene: Scene) -> None:
    scene.apply(stages={**STAGES, "count": 3})
    scene.finished()
    scene.apply(stages=STAGES)
    scene.finished()


def killed(scene: Scene) -> None:
    """The operator's pod is killed in the middle of a rollout."""
    scene.apply(server={"maxQueuedRequests": 302})
    scene.wait_surge()
    scene.operator.kubectl("delete", "pod", scene.operator.leader(), "--grace-period=0", "--force", "--wait=false")
    scene.finished()


def undo(scene: Scene) -> None:
    """A rollout that never becomes Ready, and back."""
    before, spec = members(scene.kubectl), dict(scene.spec)
    nowhere = {**STAGES, "template": {**SMALL, "nodeSelector": {"no.such/label": "x"}}}
    scene.apply(stages=nowhere, rollout={"progressDeadlineSeconds": 20})
    wait_condition(
        scene.kubectl, "Progressing", "False", reason="ProgressDeadlineExceeded", timeout_seconds=LIMIT_SECONDS
    )
    scene.spec = {"stages": STAGES, **spec}
    scene.apply()
    scene.finished()
    assert members(scene.kubectl) == before


def drain(scene: Scene) -> None:
    """Each node in turn, with one replica and with two."""
    for count in (1, 2):
        scene.kubectl("scale", "lp/smollm2", f"--replicas={count}")
        scene.finished(count)
        for node in scene.cluster.nodes:
            options = (f"--pod-selector={MEMBERS}", "--delete-emptydir-data", f"--timeout={LIMIT_SECONDS:.0f}s")
            scene.kubectl("drain", node.name, *options, timeout_seconds=LIMIT_SECONDS + 10)
            scene.kubectl("uncordon", node.name)
            scene.finished(count)
    scene.kubectl("scale", "lp/smollm2", "--replicas=1")
    scene.finished()


CHANGES: dict[str, Callable[[Scene], None]] = {
    each.__name__: each
    for each in (
        *(source, template, server, upgrade, image, scale, autoscaled, split, killed, undo, drain),
        *(dtype, quantization),
    )
}
# By change, how many texts a question may have got. On processors that do not multiply bfloat16, a sequence's numbers
# in it depend on which others share its steps, so there is no bound.
TEXTS = {"dtype": sys.maxsize, "quantization": sys.maxsize}


def main() -> int:
    """Make the changes, each under streams. Returns 0 if nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32, help="how many at a time (32)")
    parser.add_argument("--only", nargs="+", choices=CHANGES, help="these changes, in this order")
    parser.add_argument("--logs", type=Path, help="keep the cluster's and the operator's logs here")
    options = parser.parse_args()
    changes = options.only or list(CHANGES)
    if "autoscaled" in changes:
        build_metrics_server()
    images = Images(**tags())
    newer = replace(images, node=f"languagepipes-node:{NEW_TAG}", operator=f"languagepipes-operator:{NEW_TAG}")
    with Cluster(images=list(archives().values()), keep_logs=options.logs) as cluster:
        for node in cluster.nodes:
            for old, new in ((images.node, newer.node), (images.operator, newer.operator)):
                node.ctr("images", "tag", f"docker.io/library/{old}", f"docker.io/library/{new}")
        scene = start(cluster, images, newer)
        print("| change | requests | failed | seconds | longest gap of a stream | texts a question |", flush=True)
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        good = [check(scene, name, options.streams) for name in changes]
        if options.logs:
            options.logs.mkdir(parents=True, exist_ok=True)
            (options.logs / "operator.log").write_text(scene.operator.logs())
    return 0 if all(good) else 1


def start(cluster: Cluster, images: Images, newer: Images) -> Scene:
    """The operator, the weights in two claims, and a pipe that serves."""
    admin = Kubectl(programs.kubectl(), cluster.kubeconfig)
    operator, upgraded = (Installation(admin, programs.helm(), each) for each in (images, newer))
    operator.install()
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "changes"}})
    kubectl = admin.within("changes")
    fill_claim(kubectl, images)
    fill_claim(kubectl, images, OTHER_CLAIM)
    scene = Scene(kubectl, cluster, operator, upgraded)
    scene.apply(stages=STAGES)
    Client(kubectl, images)
    wait_ready(kubectl)
    return scene


def check(scene: Scene, name: str, count: int) -> bool:
    """Make one change under so many streams and print its row. Returns whether it ended and nothing failed."""
    url = wait_ready(scene.kubectl)["status"]["url"]
    answers: list[dict[str, Any]] = []
    seconds = 0.0
    problem: AssertionError | None = None
    with contextlib.ExitStack() as stack:
        try:
            answers = stack.enter_context(streams(scene.kubectl, url, name, count=count, texts=TEXTS.get(name, 1)))
            wait_for("first answers", lambda: len(answers) >= count, timeout_seconds=LIMIT_SECONDS)
            began = time.monotonic()
            CHANGES[name](scene)
            seconds, done = time.monotonic() - began, len(answers)
            wait_for("answers afterwards", lambda: len(answers) >= done + count, timeout_seconds=LIMIT_SECONDS)
            stack.close()
        except AssertionError as error:
            problem = error
            with contextlib.suppress(AssertionError):
                stack.close()
    failed = failures(answers)
    gap = max((each["gap"] for each in answers), default=0.0)
    texts = max((len(found) for found in said_to(answers).values()), default=0)
    print(f"| {name} | {len(answers)} | {len(failed)} | {seconds:.0f} | {gap:.1f} s | {texts} |", flush=True)
    if problem is not None:
        print(f"{name}: {str(problem)[-3000:]}", *failed[:3], sep="\n  ", file=sys.stderr, flush=True)
    return problem is None


def runs(kubectl: Kubectl, tag: str) -> bool:
    """Whether all members that are not ending run the node image of this tag; false if none does."""
    pods = [each for each in kubectl.list("pods", MEMBERS) if "deletionTimestamp" not in each["metadata"]]
    tags = {each["spec"]["containers"][0]["image"].rpartition(":")[2] == tag for each in pods}
    assert len(tags) == 1, "members run several images"
    return tags.pop()


if __name__ == "__main__":
    sys.exit(main())
