"""A look at many nodes, as a plan is made from it: what the operator's event loop does for it, and what a thread does.

    python -m benchmarks.node_look [--nodes 5000] [--pods 10]

Nodes have eight GPUs and 20 labels each; one pod in 25 is a member of a pipe. Prints, as a Markdown table, milliseconds
of processor time (medians): taking the look on the loop, and building the nodes in a thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from languagepipes_api.names import LABEL_MANAGED_BY, LABEL_PIPE, MANAGED_BY
from languagepipes_operator.kube.informer import ObjectKey, key_of
from languagepipes_operator.observe.cluster_nodes import ClusterNodes, PodSums, Reservation, summed_pod
from languagepipes_operator.planning.kubernetes_nodes import requested_by

_REPEATS = 15


def main() -> None:
    """Measure steady looks, and looks after changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--pods", type=int, default=10, help="on each node")
    options = parser.parse_args()
    count: int = options.nodes
    nodes, sums = ClusterNodes(), PodSums()
    for number in range(count):
        nodes.put(_name(number), _node(number))

    def put(numbers: range, memory_mib: int) -> None:
        for number in numbers:
            item = _pod(number, count, memory_mib)
            sums.put(key_of(item), summed_pod(item))

    put(range(count * options.pods), 100)
    reserved = [Reservation(_name(number), requested_by(_pod(number, count, 100))) for number in range(200)]
    pipe = ObjectKey("n", "pipe-0")

    def row(what: str, repeats: int = _REPEATS, reserved: tuple[Reservation, ...] = ()) -> None:
        loop, thread = [], []
        for _ in range(repeats):
            began = time.thread_time()
            look = nodes.look(sums, without=pipe, reserved=reserved)
            taken = time.thread_time()
            look.nodes()
            thread.append(time.thread_time() - taken)
            loop.append(taken - began)
        print(f"| {what} | {1e3 * statistics.median(loop):.1f} | {1e3 * statistics.median(thread):.1f} |", flush=True)

    print(f"| {count} nodes, {count * options.pods} pods | event loop, ms | thread, ms |\n| --- | --- | --- |")
    row("the first look", repeats=1)
    row("nothing has changed")
    row("200 reservations", reserved=tuple(reserved))
    put(range(1000), 200)
    row("1,000 pods have changed", repeats=1)


def _name(number: int) -> str:
    return f"node-{number:05}"


def _node(number: int) -> dict[str, Any]:
    labels = {f"example.com/label-{label}": "value" for label in range(20)} | {"nvidia.com/gpu.memory": "81920"}
    return {
        "metadata": {"name": _name(number), "labels": labels},
        "status": {
            "allocatable": {"cpu": "63", "memory": "257Gi", "nvidia.com/gpu": "8", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _pod(number: int, nodes: int, memory_mib: int) -> dict[str, Any]:
    labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_PIPE: f"pipe-{number % 500}"} if number % 25 == 0 else {}
    resources = {
        "requests": {"cpu": f"{100 + number % 7}m", "memory": f"{memory_mib + number % 13}Mi"},
        "limits": {"nvidia.com/gpu": "1"} if number % 10 == 0 else {},
    }
    return {
        "metadata": {"name": f"pod-{number}", "namespace": "n", "uid": str(number), "labels": labels},
        "spec": {"nodeName": _name(number % nodes), "containers": [{"resources": resources}]},
        "status": {"phase": "Running"},
    }


if __name__ == "__main__":
    main()
