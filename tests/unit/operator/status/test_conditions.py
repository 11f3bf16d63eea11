"""What follows from what: conditions and phase over a pipe's life, and which Events that is worth."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_PLAN
from languagepipes_operator.observe.snapshot import StoreReport
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.status.condition_state import condition_in
from languagepipes_operator.status.events import Event, events_of
from languagepipes_operator.status.failures import MESSAGE_MAX
from languagepipes_operator.status.status import unreadable_status
from support.cluster_state import FACTS, NOW, ClusterState, ended, later, triple, turns, unready, unscheduled, waiting
from support.failure_cases import CASES, END_MODEL

FETCHED = 104_857_600


def applied() -> ClusterState:
    """A pipe whose store's pod alone is there, and has just been scheduled."""
    cluster = ClusterState.ready()
    for name in [name for name in cluster.pods if "store" not in name]:
        del cluster.pods[name]
    for name in [name for name in cluster.deployments if "store" not in name]:
        del cluster.deployments[name]
    waiting(cluster.pod("store"), "ContainerCreating")
    cluster.pod("store")["status"]["conditions"] = []
    cluster.pod("store")["metadata"]["creationTimestamp"] = NOW.isoformat()
    cluster.planned = False
    return cluster


def test_a_first_start_reads_well_at_every_moment() -> None:
    """As `kubectl get lp -w` shows it: phase, Ready's reason, progress, stages."""
    shown: list[tuple[Any, ...]] = []
    told: list[tuple[str, str]] = []
    status: dict[str, Any] | None = None

    def look(cluster: ClusterState) -> None:
        nonlocal status
        before, status = status, cluster.status(status)
        told.extend((event.type, event.reason) for event in events_of(before, status))
        reason = condition_in(status, "Ready")["reason"]
        shown.append((status["phase"], reason, status.get("progress"), status.get("stagesReady")))

    cluster = applied()
    look(cluster)
    cluster.store = StoreReport(answered=True, phase="Resolving")
    look(cluster)

    cluster = ClusterState.ready()
    unready(cluster.pod("end-model"))
    for stage in (1, 2, 3):
        waiting(cluster.pod("stage", stage=stage), "ContainerCreating")
        cluster.pod("stage", stage=stage)["status"]["conditions"] = []
        cluster.pod("stage", stage=stage)["metadata"]["creationTimestamp"] = NOW.isoformat()
    cluster.store = StoreReport(True, FACTS, "Downloading", FETCHED, FACTS.download_bytes)
    look(cluster)
    cluster.store = StoreReport(True, FACTS, "Ready", FACTS.download_bytes, FACTS.download_bytes)
    look(cluster)
    fresh = ClusterState.ready()
    unready(fresh.pod("end-model"))
    fresh.store = cluster.store
    look(fresh)
    look(ClusterState.ready())

    assert shown == [
        ("Pending", "StoreStarting", None, None),
        ("Pending", "Resolving", None, None),
        ("Fetching", "Downloading", "100/256.6 MiB", "0/3"),
        ("Starting", "StagesStarting", None, "0/3"),
        ("Starting", "JoiningRing", None, "3/3"),
        ("Ready", "Ready", None, "3/3"),
    ]
    assert told == [
        ("Normal", "StoreStarting"),
        ("Normal", "Resolving"),
        ("Normal", "Planned"),
        ("Normal", "Downloading"),
        ("Normal", "WeightsAvailable"),
        ("Normal", "StagesStarting"),
        ("Normal", "StagesReady"),
        ("Normal", "JoiningRing"),
        ("Normal", "Ready"),
    ]


def test_zero_replicas_are_stopped_and_not_degraded() -> None:
    cluster = ClusterState.ready({"replicas": 0})

    status = cluster.status()

    assert status["phase"] == "Stopped"
    assert triple(status, "Ready")[:2] == ("True", "ScaledToZero")
    assert triple(status, "EndpointReady")[:2] == ("False", "ScaledToZero")
    assert "currentRevision" not in status
    assert turns(status)["Degraded"] == "False"
    assert triple(status, "Progressing")[:2] == ("False", "Complete")
    assert (status["replicas"], status["readyReplicas"], status["stagesReady"]) == (0, 0, "0/3")


def test_a_replica_short_is_degraded_and_still_answers() -> None:
    cluster = ClusterState.ready({"replicas": 2})
    before = cluster.status()
    assert turns(before)["Ready"] == "True"
    ended(cluster.pod("stage", replica=1, stage=2), code=137, reason="OOMKilled")
    unready(cluster.pod("end-model", replica=1))

    status = cluster.status(before)

    assert turns(status) == {
        "Ready": "False",
        "Planned": "True",
        "WeightsAvailable": "True",
        "StagesReady": "False",
        "EndpointReady": "True",
        "Progressing": "False",
        "Degraded": "True",
        "Stalled": "True",
    }
    assert status["phase"] == "Degraded"
    assert triple(status, "Ready")[1] == triple(status, "Stalled")[1] == "OOMKilled"
    assert "stage stage-2 of replica 1" in triple(status, "Ready")[2]
    assert triple(status, "Degraded")[2].startswith("1 of 2 replicas is ready: ")
    assert (status["stagesReady"], status["readyReplicas"]) == ("2/3", 1)
    assert [(s["nodes"], s["readyReplicas"], s["restarts"]) for s in status["stages"]] == [
        (["n2", "n2"], 2, 0),
        (["n1", "n1"], 1, 1),
        (["n2", "n2"], 2, 0),
    ]
    assert events_of(before, status)[0] == Event("Warning", "OOMKilled", triple(status, "Ready")[2])


def test_a_second_replica_that_starts_is_no_degradation() -> None:
    before = ClusterState.ready().status()
    cluster = ClusterState.ready({"replicas": 2}, generation=2)
    for name in [name for name in cluster.pods if "-1-" in name.removesuffix("-7c9d-x2x4p")[:20]]:
        del cluster.pods[name]

    status = cluster.status(before)

    assert turns(status)["Ready"] == "False"
    assert turns(status)["EndpointReady"] == "True"
    assert triple(status, "Degraded")[:2] == ("False", "RollingOut")
    assert turns(status)["Progressing"] == "True"


def test_a_degraded_pipe_stays_degraded_until_it_is_whole() -> None:
    cluster = ClusterState.ready()
    whole = cluster.status()
    unready(cluster.pod("end-model"))
    broken = later(cluster, seconds=10).status(whole)

    still = later(cluster, seconds=70).status(broken)

    assert turns(still)["Degraded"] == "True"
    assert still == broken
    assert turns(ClusterState.ready().status(still))["Degraded"] == "False"


def test_ready_waits_for_the_deployment_as_it_stands() -> None:
    """A changed image or key: the old pod is Ready, and the Deployment's controller has not seen the change."""
    cluster = ClusterState.ready()
    cluster.deployment("end-model")["metadata"]["generation"] = 2

    status = cluster.status()

    assert triple(status, "Ready")[:2] == ("False", "JoiningRing")
    assert turns(status)["EndpointReady"] == "True"


def test_an_old_plan_that_answers_is_an_endpoint_and_not_ready() -> None:
    cluster = ClusterState.ready(generation=2)
    cluster.updated, cluster.outdated = (1,), (0,)
    for thing in [*cluster.pods.values(), *cluster.deployments.values()]:
        if LABEL_PLAN in thing["metadata"]["labels"]:
            thing["metadata"]["labels"][LABEL_PLAN] = "0" * 16

    status = cluster.status(ClusterState.ready().status())

    assert triple(status, "Ready")[:2] == ("False", "StagesStarting")
    assert turns(status)["EndpointReady"] == "True"
    assert triple(status, "Progressing")[:2] == ("True", "RollingOut")
    assert turns(status)["Degraded"] == "False"
    assert status["phase"] == "Starting"


def test_a_refused_change_leaves_the_old_ring_answering() -> None:
    cluster = ClusterState.ready(generation=2)
    cluster.refusal = PlanError("TooManyStages", "40 stages, but 29 layers: use at most 29 stages")

    status = cluster.status(ClusterState.ready().status())

    assert triple(status, "Planned") == ("False", "TooManyStages", "40 stages, but 29 layers: use at most 29 stages")
    assert triple(status, "Ready")[:2] == ("False", "TooManyStages")
    assert turns(status)["EndpointReady"] == "True"


def test_a_store_that_failed_is_told_before_the_stages_that_wait_for_it() -> None:
    cluster = ClusterState.ready()
    for stage in (1, 2, 3):
        ended(cluster.pod("stage", stage=stage), code=1, restarts=5, back_off=True)
    unready(cluster.pod("end-model"))
    cluster.store = StoreReport(
        True, FACTS, "Failed", reason="HashMismatch", message="model.safetensors: …", failed=True
    )

    status = cluster.status()

    assert triple(status, "Ready")[1:] == (
        "HashMismatch",
        "model.safetensors: … (and 3 more: CrashLoopBackOff)",
    )
    assert status["phase"] == "Failed"


def test_a_ring_that_runs_needs_no_store() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    unscheduled(cluster.pod("store"), "0/2 nodes are available: 2 Insufficient cpu. preemption: no.")

    status = cluster.status(before)

    assert turns(status)["Ready"] == "True"
    assert triple(status, "WeightsAvailable")[:2] == ("False", "Unschedulable")
    assert status["phase"] == "Ready"


def test_the_end_models_words_count_only_once_the_stages_are_up() -> None:
    cluster = ClusterState.ready()
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = MemberStatus(state="ready", ring_ready=False, ring_error="stage 2 does not answer")
    unready(cluster.pod("stage", stage=2))

    status = cluster.status()

    assert triple(status, "Ready")[:2] == ("False", "StagesStarting")
    assert "stage stage-2" in triple(status, "Ready")[2]


def test_a_ring_that_was_whole_and_is_not_is_told_as_down() -> None:
    """Nobody was asked for the End Model's words: that it ran while the pipe was Ready is enough."""
    cluster = ClusterState.ready()
    before = cluster.status()
    unready(cluster.pod("end-model"))

    first = later(cluster, seconds=4).status(before)
    again = later(cluster, seconds=64).status(first)

    assert triple(first, "Ready")[:2] == ("False", "RingDown")
    assert "the ring health check no longer passes" in triple(first, "Ready")[2]
    assert [event.type for event in events_of(before, first)] == ["Warning", "Warning"]
    assert again == first


def test_a_ring_whose_lost_stage_is_back_joins_and_is_not_told_as_down() -> None:
    """Between the stage's readiness and the first token; a Warning to look at logs would mislead there."""
    cluster = ClusterState.ready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    back = next(each for each in cluster.pod("stage", stage=2)["status"]["conditions"] if each["type"] == "Ready")
    back["lastTransitionTime"] = (NOW + timedelta(seconds=3)).isoformat()

    soon = later(cluster, seconds=4).status(before)
    then = later(cluster, seconds=13).status(soon)

    assert triple(soon, "Ready")[:2] == ("False", "JoiningRing")
    assert triple(then, "Ready")[:2] == ("False", "RingDown")


def test_an_end_model_that_was_replaced_joins_and_is_not_down() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    unready(cluster.pod("end-model"))
    cluster.pod("end-model")["status"]["containerStatuses"][0]["state"] = {
        "running": {"startedAt": (NOW + timedelta(seconds=3)).isoformat()}
    }

    assert triple(later(cluster, seconds=4).status(before), "Ready")[1] == "JoiningRing"


def test_a_crash_of_long_ago_is_not_why_a_member_is_not_ready_now() -> None:
    cluster = ClusterState.ready()
    ended(cluster.pod("end-model"), code=139)
    running = cluster.pod("end-model")["status"]["containerStatuses"][0]["state"]["running"]
    running["startedAt"] = (NOW - timedelta(hours=3)).isoformat()

    assert triple(cluster.status(), "Ready")[1] == "JoiningRing"


def test_a_crash_loop_reads_the_same_while_it_goes_round() -> None:
    """Running, terminated, held back, running: one reason and one message."""
    texts = set()
    for state in ("running", "terminated", "waiting"):
        cluster = ClusterState.ready()
        pod = ended(
            cluster.pod("stage", stage=2), code=1, message="StoreRefused", restarts=3, back_off=state == "waiting"
        )
        if state == "terminated":
            status = pod["status"]["containerStatuses"][0]
            status["state"] = {"terminated": status["lastState"]["terminated"]}
        unready(cluster.pod("end-model"))
        texts.add(triple(cluster.status(), "Ready"))

    assert len(texts) == 1


def test_an_image_that_cannot_be_pulled_reads_the_same_while_it_is_tried_again() -> None:
    told = {
        triple(cluster.status(), "Ready")
        for case in CASES
        if case.name.startswith("an image that is not there")
        for cluster in [ClusterState.ready()]
        if case.spoil(cluster) is None
    }

    assert len(told) == 1


def test_progress_is_written_at_most_every_ten_seconds() -> None:
    cluster = ClusterState.ready()
    cluster.store = StoreReport(True, FACTS, "Downloading", FETCHED, FACTS.download_bytes)
    first = cluster.status()
    assert first["progress"] == "100/256.6 MiB"
    cluster.store = StoreReport(True, FACTS, "Downloading", 2 * FETCHED, FACTS.download_bytes)

    soon = later(cluster, seconds=9).status(first, progress_written=NOW)
    then = later(cluster, seconds=10).status(first, progress_written=NOW)

    assert soon == first
    assert then["progress"] == "200/256.6 MiB"
    assert events_of(first, then) == []


def test_progress_never_says_all_before_all_is_there() -> None:
    cluster = ClusterState.ready()
    shown = []
    for done in (FACTS.download_bytes - 1, FACTS.download_bytes):
        cluster.store = StoreReport(True, FACTS, "Verifying", done, FACTS.download_bytes)
        shown.append(cluster.status()["progress"])

    assert shown == ["256.5/256.6 MiB", "256.6/256.6 MiB"]


def test_a_store_that_misses_a_question_is_no_news() -> None:
    cluster = ClusterState.ready()
    unready(cluster.pod("end-model"))
    cluster.store = StoreReport(True, FACTS, "Downloading", FETCHED, FACTS.download_bytes)
    first = cluster.status()
    cluster.store = StoreReport(answered=False, facts=FACTS, misses=1)

    assert later(cluster, seconds=30).status(first) == first


def test_a_paused_pipe_stays_truthful_and_makes_no_progress() -> None:
    cluster = ClusterState.ready()
    cluster.paused = True
    unready(cluster.pod("end-model"))

    status = cluster.status()

    assert triple(status, "Progressing")[:2] == ("False", "Paused")
    assert triple(status, "Ready")[:2] == ("False", "JoiningRing")


def test_a_resource_that_cannot_be_read_keeps_what_was_said_of_the_rest() -> None:
    cluster = ClusterState.ready()
    before = cluster.status()
    cluster.raw["metadata"]["generation"] = 2

    status = unreadable_status(cluster.raw, "spec.stages: unknown field", before, now=NOW)

    assert triple(status, "Ready")[:2] == ("False", "InvalidSpec")
    assert "spec.stages: unknown field" in triple(status, "Planned")[2]
    assert condition_in(status, "EndpointReady") == condition_in(before, "EndpointReady")
    assert (status["observedGeneration"], status["phase"], status["url"]) == (2, "Failed", before["url"])


def test_what_kubectl_shows_in_columns_is_short() -> None:
    for case in CASES:
        cluster = ClusterState.ready(case.spec)
        case.spoil(cluster)
        status = cluster.status()

        assert len(condition_in(status, "Ready")["reason"]) <= 26
        assert len(status.get("stagesReady", "")) <= 5
        assert all(event.reason and len(event.message) <= MESSAGE_MAX for event in events_of(None, status))


def test_a_very_long_failure_is_cut_to_what_an_event_can_hold() -> None:
    cluster = ClusterState.ready()
    cluster.refusal = PlanError("BudgetsTooSmall", "stage and its budget, " * 200)

    message = triple(cluster.status(), "Ready")[2]

    assert len(message) == MESSAGE_MAX
    assert message.endswith("…")
