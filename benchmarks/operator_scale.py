"""How the operator grows with pipes: 1, 50 and 500 of them on a real API server, without kubelets.

    python -m benchmarks.operator_scale [PIPES ...]

Each pipe has two stages, so 4 Deployments and what goes with them. What a weights store would tell is put there as an
earlier operator would have left it: the plan's ConfigMap. Prints, as a Markdown table: seconds from the first apply to
the last child, a bound on the longest reconcile, the operator's CPU and memory, requests to the API server and writes a
pipe, and writes in an idle window.
Everything shares this machine's cores with etcd and the API server.
"""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cluster import ControlPlane  # noqa: E402
from languagepipes_api.spec import ModelSpec, parse_pipe  # noqa: E402
from languagepipes_operator.children.plan_config import plan_config_map  # noqa: E402
from languagepipes_operator.cli.model_facts import read_facts  # noqa: E402
from languagepipes_operator.observe.snapshot import Children, Snapshot  # noqa: E402
from languagepipes_operator.observe.stored_plans import StoredPlan  # noqa: E402
from languagepipes_operator.planning.inputs import plan_inputs  # noqa: E402
from languagepipes_operator.planning.plan import plan  # noqa: E402
from support.llama_files import write_tiny_llama  # noqa: E402
from support.served_namespace import OperatorProcess, ServedNamespace, eventually, install_crd, settled  # noqa: E402

_IDLE_SECONDS = 20.0
_LIMIT_SECONDS = 900.0
_CALLS = "languagepipes_operator_api_calls_total"


def main(counts: list[int]) -> None:
    """Measure each count on a fresh control plane."""
    print(
        "| pipes | all children after | longest reconcile below | operator CPU | memory | requests a pipe "
        "| writes a pipe | idle writes | idle CPU |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        facts = read_facts(
            ModelSpec.model_validate(
                {"source": f"file://{write_tiny_llama(Path(folder) / 'model')}", "dtype": "float32"},
                context={"local": True},
            )
        )
        for count in counts:
            with ControlPlane(scheduler=False, controller_manager=False) as control_plane:
                install_crd(control_plane)
                print(_row(control_plane, count, facts), flush=True)


def _row(control_plane: ControlPlane, count: int, facts: Any) -> str:
    served = ServedNamespace(control_plane)
    try:
        operator = served.started()
        began = time.monotonic()

        def make(number: int) -> None:
            raw = served.apply_pipe(f"pipe-{number}")
            served.api.create(served.path("ConfigMap"), _stored_plan(raw, facts))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, range(count)))
        eventually(
            lambda: len(served.list("Deployment")) == 4 * count,
            seconds=_LIMIT_SECONDS,
            what=f"{4 * count} Deployments",
        )
        seconds = time.monotonic() - began
        settled(operator, 5.0)
        cpu, calls, writes = _cpu(operator), operator.metric(_CALLS), operator.writes()
        memory = operator.metric("process_resident_memory_bytes")
        time.sleep(_IDLE_SECONDS)
        idle_writes, idle_cpu = operator.writes() - writes, _cpu(operator) - cpu
        return (
            f"| {count} | {seconds:.1f} s | {_slowest(operator)} s | {cpu:.1f} s | {memory / 2**20:.0f} MiB "
            f"| {calls / count:.1f} | {writes / count:.1f} | {idle_writes} in {_IDLE_SECONDS:.0f} s "
            f"| {100 * idle_cpu / _IDLE_SECONDS:.1f} % |"
        )
    finally:
        served.close()


def _stored_plan(raw: dict[str, Any], facts: Any) -> dict[str, Any]:
    """The ConfigMap of the plan that follows from these facts."""
    pipe = parse_pipe(raw, local=False)
    stored = StoredPlan(plan(pipe.spec, facts), facts, "languagepipes-node:test", plan_inputs(pipe.spec))
    return plan_config_map(Snapshot(pipe, raw, Children(), datetime.now(UTC)), stored)


def _cpu(operator: OperatorProcess) -> float:
    return operator.metric("process_cpu_seconds_total")


def _slowest(operator: OperatorProcess) -> str:
    """The smallest bound of the histogram that all reconciles are below."""
    total = operator.metric("languagepipes_operator_reconcile_seconds_count")
    bounds = ("0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0")
    name = "languagepipes_operator_reconcile_seconds_bucket"
    return next((bound for bound in bounds if operator.metric(name, le=bound) >= total), "+Inf")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [1, 50, 500])
