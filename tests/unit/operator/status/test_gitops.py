"""What Argo CD, Flux and kpt make of a pipe, from the moment of its apply on, by the statuses that the operator writes.

Argo CD runs examples/argocd/health.lua, and so does this, in Lua 5.1 with the libraries that Argo CD opens. Flux and
kpt follow kstatus (sigs.k8s.io/cli-utils, pkg/kstatus), whose rules for custom resources are stated here again. Flux
has expressions of examples/flux/pipes.yaml beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import celpy
import pytest
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.status import unreadable_status
from lupa.lua51 import LuaRuntime
from support.changing_pipes import autoscaled, idle, rollout, status_before_rollout, without_stages
from support.cluster_state import NOW, ClusterState, later, unready, unscheduled
from support.example_files import example_objects
from support.paths import ROOT

SCRIPT = (ROOT / "examples/argocd/health.lua").read_text(encoding="utf-8")
# What Argo CD does not open (util/lua/lua.go: base, table, package, and three functions of os).
NOT_OPEN = ("string", "math", "io", "debug", "coroutine", "os", "package", "require")
NO_ROOM = "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available."
REFUSAL = PlanError("TooManyStages", "40 stages, but 29 layers: use at most 29 stages")

Resource = dict[str, Any]


def resource(cluster: ClusterState, status: dict[str, Any] | None) -> Resource:
    return {**cluster.raw, **({} if status is None else {"status": status})}


def seen(cluster: ClusterState, previous: dict[str, Any] | None = None) -> Resource:
    return resource(cluster, cluster.status(previous))


def not_reported() -> Resource:
    """As the CRD has it by default."""
    return resource(ClusterState.ready(), {"observedGeneration": -1})


def starting() -> Resource:
    cluster = ClusterState.ready()
    for pod in cluster.pods.values():
        unready(pod)
    return seen(cluster)


def ready() -> Resource:
    return seen(ClusterState.ready())


def scaled_to_zero() -> Resource:
    return seen(ClusterState.ready({"replicas": 0}))


def being_scaled_to_zero() -> Resource:
    cluster = ClusterState.ready()
    cluster.raw["spec"]["replicas"] = 0
    return seen(cluster)


def is_idle() -> Resource:
    return seen(idle(), autoscaled(0).status())


def waking() -> Resource:
    return seen(without_stages(autoscaled(0)), idle().status())


def scaling_up() -> Resource:
    return seen(autoscaled(desired=2), autoscaled().status())


def refused_at_first() -> Resource:
    cluster = ClusterState.ready()
    cluster.refusal = REFUSAL
    cluster.pods = {name: pod for name, pod in cluster.pods.items() if "store" in name}
    cluster.deployments = {name: each for name, each in cluster.deployments.items() if "store" in name}
    return seen(cluster)


def refused_change() -> Resource:
    cluster = ClusterState.ready(generation=2)
    cluster.refusal = REFUSAL
    return seen(cluster, ClusterState.ready().status())


def rolling_out() -> Resource:
    return seen(rollout(), status_before_rollout())


def past_the_deadline() -> Resource:
    return seen(rollout(age_seconds=900), status_before_rollout())


def a_stage_is_lost() -> Resource:
    cluster = ClusterState.ready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    unready(cluster.pod("stage", stage=2))
    return seen(later(cluster, seconds=10), before)


def no_room(**placement: Any) -> Resource:
    cluster = ClusterState.ready({"placement": placement} if placement else None)
    unscheduled(cluster.pod("stage", stage=2), NO_ROOM)
    unready(cluster.pod("end-model"))
    return seen(cluster)


def no_room_yet() -> Resource:
    return no_room(allowPending=True)


def paused() -> Resource:
    cluster = ClusterState.ready({"paused": True})
    cluster.paused = True
    return seen(cluster)


def paused_and_edited() -> Resource:
    cluster = ClusterState.ready({"paused": True}, generation=2)
    cluster.planned, cluster.running, cluster.paused = False, True, True
    cluster.held_back = ("a new plan is made",)
    return seen(cluster, ClusterState.ready().status())


def deleted() -> Resource:
    found = ready()
    return {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-11-24T12:00:00Z"}}


def edited_and_not_seen() -> Resource:
    found = ready()
    return {**found, "metadata": {**found["metadata"], "generation": 2}}


def not_readable() -> Resource:
    cluster = ClusterState.ready()
    before = cluster.status()
    cluster.raw["metadata"]["generation"] = 2
    return resource(cluster, unreadable_status(cluster.raw, "spec.stages: unknown field", before, now=NOW))


@dataclass(frozen=True)
class Case:
    """argo: its health, and part of its message. kstatus: by its own rules. flux: with the expressions."""

    made_by: Callable[[], Resource]
    argo: str
    says: str
    kstatus: str
    flux: str


CASES = [
    Case(not_reported, "Progressing", "not reported on the pipe yet", "InProgress", "InProgress"),
    Case(starting, "Progressing", "not ready yet", "InProgress", "InProgress"),
    Case(ready, "Healthy", "ring health check passed", "Current", "Current"),
    Case(scaled_to_zero, "Healthy", "spec.replicas is 0", "Current", "Current"),
    Case(being_scaled_to_zero, "Progressing", "1 replica is being stopped", "InProgress", "InProgress"),
    Case(is_idle, "Healthy", "the stages are stopped", "Current", "Current"),
    Case(waking, "Progressing", "a request came", "InProgress", "InProgress"),
    Case(scaling_up, "Healthy", "autoscaling asks for them", "Current", "Current"),
    Case(refused_at_first, "Degraded", REFUSAL.message, "Failed", "Failed"),
    Case(refused_change, "Degraded", REFUSAL.message, "Failed", "Failed"),
    Case(rolling_out, "Progressing", "not ready yet", "InProgress", "InProgress"),
    Case(past_the_deadline, "Degraded", "was not ready within 900 s", "Failed", "Failed"),
    Case(a_stage_is_lost, "Degraded", "0 of 1 replicas are ready", "InProgress", "InProgress"),
    Case(no_room, "Degraded", "too little free memory", "Failed", "Failed"),
    Case(no_room_yet, "Progressing", "too little free memory", "InProgress", "InProgress"),
    Case(paused, "Suspended", "changes no object of the pipe", "Current", "Current"),
    Case(paused_and_edited, "Suspended", "a new plan is made", "InProgress", "InProgress"),
    Case(deleted, "Progressing", "is being deleted", "Terminating", "Current"),
    Case(edited_and_not_seen, "Progressing", "has not seen the last change", "InProgress", "InProgress"),
    Case(not_readable, "Degraded", "spec.stages: unknown field", "Failed", "Failed"),
]


def argo_health(found: Resource) -> tuple[str, str]:
    lua = LuaRuntime(unpack_returned_tuples=True)
    for name in NOT_OPEN:
        lua.globals()[name] = None
    lua.globals()["obj"] = lua.table_from(found, recursive=True)
    health = lua.execute(SCRIPT)
    return health["status"], health["message"]


def kstatus(found: Resource) -> str:
    """status.Compute for a kind without rules of its own."""
    status = found.get("status", {})
    if found["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != found["metadata"]["generation"]:
        return "InProgress"
    if condition_in(status, "Reconciling").get("status") == "True":
        return "InProgress"
    if condition_in(status, "Stalled").get("status") == "True":
        return "Failed"
    of_ready = condition_in(status, "Ready").get("status")
    return "InProgress" if of_ready in ("False", "Unknown") else "Current"


def flux_status(found: Resource) -> str:
    """StatusEvaluator.Evaluate of github.com/fluxcd/pkg/runtime/cel.

    Where there is no status at all, `has(status.conditions)` is false here and an error in Go; Flux waits for both.
    """
    (kustomization,) = example_objects("flux/pipes.yaml")
    (expressions,) = kustomization["spec"]["healthCheckExprs"]
    observed = found.get("status", {}).get("observedGeneration")
    if observed is not None and observed != found["metadata"]["generation"]:
        return "InProgress"
    environment = celpy.Environment()
    for field, means in (("inProgress", "InProgress"), ("failed", "Failed"), ("current", "Current")):
        program = environment.program(environment.compile(expressions[field]))
        if program.evaluate({key: celpy.json_to_cel(value) for key, value in found.items()}):
            return means
    return "InProgress"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.made_by.__name__)
def test_argo_cd_shows_the_pipes_health_with_its_own_words(case: Case) -> None:
    status, message = argo_health(case.made_by())

    assert status == case.argo
    assert case.says in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.made_by.__name__)
def test_kstatus_waits_until_the_pipe_is_ready_idle_or_scaled_to_zero(case: Case) -> None:
    assert kstatus(case.made_by()) == case.kstatus


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.made_by.__name__)
def test_flux_is_told_of_failures_too(case: Case) -> None:
    assert flux_status(case.made_by()) == case.flux


def test_the_page_has_the_script_as_it_stands() -> None:
    page = (ROOT / "docs/gitops.md").read_text(encoding="utf-8")
    shown = "".join(f"    {line}\n" if line else "\n" for line in SCRIPT.splitlines())

    assert f"  resource.customizations.health.languagepipes.io_LanguagePipe: |\n{shown}" in page
