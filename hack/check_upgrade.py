#!/usr/bin/env python3
"""Upgrade from another version's chart and images to this checkout's, on the test cluster: no healthy pod restarts.

    sudo .venv/bin/python hack/check_upgrade.py --chart OLD/charts/languagepipes --node OLD.tar --operator OLD.tar

The archives are those that hack/build_images.py wrote for the other version. Both versions may have the same tags, so
the old images get the tag `before`. Exit 1 if a pod was replaced or restarted, or if a request failed meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cluster import Cluster, programs  # noqa: E402
from support.built_images import archives, tags  # noqa: E402
from support.installation import Installation  # noqa: E402
from support.kubectl import Kubectl  # noqa: E402
from support.serving import Client, Images, fill_claim, pipe, wait_ready  # noqa: E402

OLD_TAG = "before"
WATCHED_SECONDS = 120.0
QUESTION = "What is the capital of France?"


def main() -> int:
    """Run the upgrade. Returns 0 if nothing restarted and no request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chart", type=Path, required=True, help="the other version's chart")
    parser.add_argument("--node", type=Path, required=True, help="its node image, as an archive")
    parser.add_argument("--operator", type=Path, required=True, help="its operator image, as an archive")
    options = parser.parse_args()
    new = Images(**tags())
    with tempfile.TemporaryDirectory() as folder:
        retagged = [retag(archive, Path(folder)) for archive in (options.node, options.operator)]
        old = Images(
            f"languagepipes-node:{OLD_TAG}", f"languagepipes-operator:{OLD_TAG}", client=new.client, models=new.models
        )
        with Cluster(images=[*archives().values(), *retagged]) as cluster:
            return upgrade(Kubectl(programs.kubectl(), cluster.kubeconfig), options.chart, old, new)


def upgrade(admin: Kubectl, old_chart: Path, old: Images, new: Images) -> int:
    """Install the old version, wait until its pipe serves, upgrade, and watch its pods."""
    admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "upgrade"}})
    kubectl = admin.within("upgrade")
    Installation(admin, programs.helm(), old, chart=old_chart).install()
    fill_claim(kubectl, new)
    kubectl.apply(pipe())
    status = wait_ready(kubectl)["status"]
    client = Client(kubectl, new)
    before = pods_of(kubectl)
    print(f"before: {len(before)} pods, phase {status['phase']}", *sorted(before), sep="\n  ", flush=True)

    failures: list[str] = []
    answers: list[float] = []
    done = threading.Event()

    def keep_asking() -> None:
        while not done.is_set():
            began = time.monotonic()
            try:
                client.ask(status["url"], QUESTION, max_tokens=8)
                answers.append(time.monotonic() - began)
            except AssertionError as error:
                failures.append(str(error)[-300:])

    asking = threading.Thread(target=keep_asking)
    asking.start()
    upgraded = Installation(admin, programs.helm(), new)
    # helm never changes a CRD that it installed from crds/; this chart has it as a template.
    upgraded.install()
    leader = upgraded.wait_acting()
    time.sleep(WATCHED_SECONDS)
    done.set()
    asking.join()
    after = pods_of(kubectl)
    wait_ready(kubectl)
    print(f"after: led by {leader}, {len(after)} pods", *sorted(after), sep="\n  ")
    print(f"{len(answers)} requests answered, {len(failures)} failed", *failures[:3], sep="\n  ")
    changed = {name: (state, after.get(name)) for name, state in before.items() if after.get(name) != state}
    added = sorted(set(after) - set(before))
    if changed or added:
        print(f"changed: {changed}\nadded: {added}")
    return 1 if changed or added or failures or not answers else 0


def pods_of(kubectl: Kubectl) -> dict[str, tuple[str, int]]:
    """Of each pod of the pipe: its UID and how often its containers were restarted."""
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(status["restartCount"] for status in pod["status"].get("containerStatuses", ())),
        )
        for pod in kubectl.list("pods", "languagepipes.io/pipe=smollm2")
    }


def retag(archive: Path, folder: Path) -> Path:
    """A copy of a docker archive whose image has the tag OLD_TAG."""
    target = folder / archive.name
    with tarfile.open(archive) as source, tarfile.open(target, "w") as copy:
        for member in source:
            if member.name == "repositories":
                continue
            stream = source.extractfile(member) if member.isfile() else None
            if member.name == "manifest.json":
                assert stream is not None
                (entry,) = json.load(stream)
                name = entry["RepoTags"][0].rpartition("/")[2].partition(":")[0]
                entry["RepoTags"] = [f"{name}:{OLD_TAG}"]
                content = json.dumps([entry]).encode()
                member.size = len(content)
                stream = io.BytesIO(content)
            copy.addfile(member, stream)
    return target


if __name__ == "__main__":
    sys.exit(main())
