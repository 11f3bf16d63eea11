"""What follows from what: conditions and phase over a pipe's life, and which Events that is worth."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import LABEL_PLAN
from languagepipes_operator.observe.snapshot import StoreReport
from languagepipes_operator.planning.errors import PlanError
from languagepipes_operator.status.conditions import condition_in
from languagepipes_operator.status.events import Event, events_of
from languagepipes_operator.status.failures import MESSAGE_MAX
from languagepipes_operator.status.status import unreadable_status
from support.failure_cases import CASES, END_MODEL
from support.pipe_worlds import FACTS, NOW, World, ended, later, triple, turns, unready, unscheduled, waiting

FETCHED = 104_857_600


def applied() -> World:
    """A pipe whose store's pod alone is there, and has just been scheduled."""
    world = World.ready()
    for name in [name for name in world.pods if "store" not in name]:
        del world.pods[name]
    for name in [name for name in world.deployments if "store" not in name]:
        del world.deployments[name]
    waiting(world.pod("store"), "ContainerCreating")
    world.pod("store")["status"]["conditions"] = []
    world.pod("store")["metadata"]["creationTimestamp"] = NOW.isoformat()
    world.planned = False
    return world


def test_a_first_start_reads_well_at_every_moment() -> None:
    """As `kubectl get lp -w` shows it: phase, Ready's reason, progress, stages."""
    shown: list[tuple[Any, ...]] = []
    told: list[tuple[str, str]] = []
    status: dict[str, Any] | None = None

    def look(world: World) -> None:
        nonlocal status
        before, status = status, world.status(status)
        told.extend((event.type, event.reason) for event in events_of(before, status))
        reason = condition_in(status, "Ready")["reason"]
        shown.append((status["phase"], reason, status.get("progress"), status.get("stagesReady")))

    world = applied()
    look(world)
    world.store = StoreReport(answered=True, phase="Resolving")
    look(world)

    world = World.ready()
    unready(world.pod("end-model"))
    for stage in (1, 2, 3):
        waiting(world.pod("stage", stage=stage), "ContainerCreating")
        world.pod("stage", stage=stage)["status"]["conditions"] = []
        world.pod("stage", stage=stage)["metadata"]["creationTimestamp"] = NOW.isoformat()
    world.store = StoreReport(True, FACTS, "Downloading", FETCHED, FACTS.download_bytes)
    look(world)
    world.store = StoreReport(True, FACTS, "Ready", FACTS.download_bytes, FACTS.download_bytes)
    look(world)
    fresh = World.ready()
    unready(fresh.pod("end-model"))
    fresh.store = world.store
    look(fresh)
    look(World.ready())

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
    world = World.ready({"replicas": 0})

    status = world.status()

    assert status["phase"] == "Stopped"
    assert triple(status, "Ready")[:2] == ("False", "ScaledToZero")
    assert turns(status)["Degraded"] == "False"
    assert triple(status, "Progressing")[:2] == ("False", "Complete")
    assert (status["replicas"], status["readyReplicas"], status["stagesReady"]) == (0, 0, "0/3")


def test_a_replica_short_is_degraded_and_still_answers() -> None:
    world = World.ready({"replicas": 2})
    before = world.status()
    assert turns(before)["Ready"] == "True"
    ended(world.pod("stage", replica=1, stage=2), code=137, reason="OOMKilled")
    unready(world.pod("end-model", replica=1))

    status = world.status(before)

    assert turns(status) == {
        "Ready": "False",
        "Planned": "True",
        "WeightsAvailable": "True",
        "StagesReady": "False",
        "EndpointReady": "True",
        "Progressing": "False",
        "Degraded": "True",
    }
    assert status["phase"] == "Degraded"
    assert triple(status, "Ready")[1] == "OOMKilled"
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
    before = World.ready().status()
    world = World.ready({"replicas": 2}, generation=2)
    for name in [name for name in world.pods if "-1-" in name.removesuffix("-7c9d-x2x4p")[:20]]:
        del world.pods[name]

    status = world.status(before)

    assert turns(status)["Ready"] == "False"
    assert turns(status)["EndpointReady"] == "True"
    assert triple(status, "Degraded")[:2] == ("False", "RollingOut")
    assert turns(status)["Progressing"] == "True"


def test_a_degraded_pipe_stays_degraded_until_it_is_whole() -> None:
    world = World.ready()
    whole = world.status()
    unready(world.pod("end-model"))
    broken = later(world, seconds=10).status(whole)

    still = later(world, seconds=70).status(broken)

    assert turns(still)["Degraded"] == "True"
    assert still == broken
    assert turns(World.ready().status(still))["Degraded"] == "False"


def test_ready_waits_for_the_deployment_as_it_stands() -> None:
    """A changed image or key: the old pod is Ready, and the Deployment's controller has not seen the change."""
    world = World.ready()
    world.deployment("end-model")["metadata"]["generation"] = 2

    status = world.status()

    assert triple(status, "Ready")[:2] == ("False", "JoiningRing")
    assert turns(status)["EndpointReady"] == "True"


def test_an_old_plan_that_answers_is_an_endpoint_and_not_ready() -> None:
    world = World.ready(generation=2)
    for thing in [*world.pods.values(), *world.deployments.values()]:
        if LABEL_PLAN in thing["metadata"]["labels"]:
            thing["metadata"]["labels"][LABEL_PLAN] = "0" * 16

    status = world.status(World.ready().status())

    assert triple(status, "Ready")[:2] == ("False", "StagesStarting")
    assert turns(status)["EndpointReady"] == "True"
    assert triple(status, "Progressing")[:2] == ("True", "RollingOut")
    assert turns(status)["Degraded"] == "False"
    assert status["phase"] == "Starting"


def test_a_refused_change_leaves_the_old_ring_answering() -> None:
    world = World.ready(generation=2)
    world.refusal = PlanError("TooManyStages", "40 stages, but 29 layers: use at most 29 stages")

    status = world.status(World.ready().status())

    assert triple(status, "Planned") == ("False", "TooManyStages", "40 stages, but 29 layers: use at most 29 stages")
    assert triple(status, "Ready")[:2] == ("False", "TooManyStages")
    assert turns(status)["EndpointReady"] == "True"


def test_a_store_that_failed_is_told_before_the_stages_that_wait_for_it() -> None:
    world = World.ready()
    for stage in (1, 2, 3):
        ended(world.pod("stage", stage=stage), code=1, restarts=5, back_off=True)
    unready(world.pod("end-model"))
    world.store = StoreReport(True, FACTS, "Failed", reason="HashMismatch", message="model.safetensors: …", failed=True)

    status = world.status()

    assert triple(status, "Ready")[1:] == (
        "HashMismatch",
        "model.safetensors: … (and 3 more: CrashLoopBackOff)",
    )
    assert status["phase"] == "Failed"


def test_a_ring_that_runs_needs_no_store() -> None:
    world = World.ready()
    before = world.status()
    unscheduled(world.pod("store"), "0/2 nodes are available: 2 Insufficient cpu. preemption: no.")

    status = world.status(before)

    assert turns(status)["Ready"] == "True"
    assert triple(status, "WeightsAvailable")[:2] == ("False", "Unschedulable")
    assert status["phase"] == "Ready"


def test_the_end_models_words_count_only_once_the_stages_are_up() -> None:
    world = World.ready()
    unready(world.pod("end-model"))
    world.members[END_MODEL] = MemberStatus(state="ready", ring_ready=False, ring_error="stage 2 does not answer")
    unready(world.pod("stage", stage=2))

    status = world.status()

    assert triple(status, "Ready")[:2] == ("False", "StagesStarting")
    assert "stage stage-2" in triple(status, "Ready")[2]


def test_a_ring_that_was_whole_and_is_not_is_told_as_down() -> None:
    """Nobody was asked for the End Model's words: that it ran while the pipe was Ready is enough."""
    world = World.ready()
    before = world.status()
    unready(world.pod("end-model"))

    first = later(world, seconds=4).status(before)
    again = later(world, seconds=64).status(first)

    assert triple(first, "Ready")[:2] == ("False", "RingDown")
    assert "the ring health check no longer passes" in triple(first, "Ready")[2]
    assert [event.type for event in events_of(before, first)] == ["Warning", "Warning"]
    assert again == first


def test_a_ring_whose_lost_stage_is_back_joins_and_is_not_told_as_down() -> None:
    """Between the stage's readiness and the first token; a Warning to look at logs would mislead there."""
    world = World.ready()
    before = world.status()
    unready(world.pod("end-model"))
    back = next(each for each in world.pod("stage", stage=2)["status"]["conditions"] if each["type"] == "Ready")
    back["lastTransitionTime"] = (NOW + timedelta(seconds=3)).isoformat()

    soon = later(world, seconds=4).status(before)
    then = later(world, seconds=13).status(soon)

    assert triple(soon, "Ready")[:2] == ("False", "JoiningRing")
    assert triple(then, "Ready")[:2] == ("False", "RingDown")


def test_an_end_model_that_was_replaced_joins_and_is_not_down() -> None:
    world = World.ready()
    before = world.status()
    unready(world.pod("end-model"))
    world.pod("end-model")["status"]["containerStatuses"][0]["state"] = {
        "running": {"startedAt": (NOW + timedelta(seconds=3)).isoformat()}
    }

    assert triple(later(world, seconds=4).status(before), "Ready")[1] == "JoiningRing"


def test_a_crash_of_long_ago_is_not_why_a_member_is_not_ready_now() -> None:
    world = World.ready()
    ended(world.pod("end-model"), code=139)
    running = world.pod("end-model")["status"]["containerStatuses"][0]["state"]["running"]
    running["startedAt"] = (NOW - timedelta(hours=3)).isoformat()

    assert triple(world.status(), "Ready")[1] == "JoiningRing"


def test_a_crash_loop_reads_the_same_while_it_goes_round() -> None:
    """Running, terminated, held back, running: one reason and one message."""
    texts = set()
    for state in ("running", "terminated", "waiting"):
        world = World.ready()
        pod = ended(
            world.pod("stage", stage=2), code=1, message="StoreRefused", restarts=3, back_off=state == "waiting"
        )
        if state == "terminated":
            status = pod["status"]["containerStatuses"][0]
            status["state"] = {"terminated": status["lastState"]["terminated"]}
        unready(world.pod("end-model"))
        texts.add(triple(world.status(), "Ready"))

    assert len(texts) == 1


def test_an_image_that_cannot_be_pulled_reads_the_same_while_it_is_tried_again() -> None:
    told = {
        triple(world.status(), "Ready")
        for case in CASES
        if case.name.startswith("an image that is not there")
        for world in [World.ready()]
        if case.spoil(world) is None
    }

    assert len(told) == 1


def test_progress_is_written_at_most_every_ten_seconds() -> None:
    world = World.ready()
    world.store = StoreReport(True, FACTS, "Downloading", FETCHED, FACTS.download_bytes)
    first = world.status()
    assert first["progress"] == "100/256.6 MiB"
    world.store = StoreReport(True, FACTS, "Downloading", 2 * FETCHED, FACTS.download_bytes)

    soon = later(world, seconds=9).status(first, progress_written=NOW)
    then = later(world, seconds=10).status(first, progress_written=NOW)

    assert soon == first
    assert then["progress"] == "200/256.6 MiB"
    assert events_of(first, then) == []


def test_progress_never_says_all_before_all_is_there() -> None:
    world = World.ready()
    shown = []
    for done in (FACTS.download_bytes - 1, FACTS.download_bytes):
        world.store = StoreReport(True, FACTS, "Verifying", done, FACTS.download_bytes)
        shown.append(world.status()["progress"])

    assert shown == ["256.5/256.6 MiB", "256.6/256.6 MiB"]


def test_a_store_that_misses_a_question_is_no_news() -> None:
    world = World.ready()
    unready(world.pod("end-model"))
    world.store = StoreReport(True, FACTS, "Downloading", FETCHED, FACTS.download_bytes)
    first = world.status()
    world.store = StoreReport(answered=False, facts=FACTS, misses=1)

    assert later(world, seconds=30).status(first) == first


def test_a_paused_pipe_stays_truthful_and_makes_no_progress() -> None:
    world = World.ready()
    world.paused = True
    unready(world.pod("end-model"))

    status = world.status()

    assert triple(status, "Progressing")[:2] == ("False", "Paused")
    assert triple(status, "Ready")[:2] == ("False", "JoiningRing")


def test_a_resource_that_cannot_be_read_keeps_what_was_said_of_the_rest() -> None:
    world = World.ready()
    before = world.status()
    world.raw["metadata"]["generation"] = 2

    status = unreadable_status(world.raw, "spec.stages: unknown field", before, now=NOW)

    assert triple(status, "Ready")[:2] == ("False", "InvalidSpec")
    assert "spec.stages: unknown field" in triple(status, "Planned")[2]
    assert condition_in(status, "EndpointReady") == condition_in(before, "EndpointReady")
    assert (status["observedGeneration"], status["phase"], status["url"]) == (2, "Failed", before["url"])


def test_what_kubectl_shows_in_columns_is_short() -> None:
    for case in CASES:
        world = World.ready(case.spec)
        case.spoil(world)
        status = world.status()

        assert len(condition_in(status, "Ready")["reason"]) <= 26
        assert len(status.get("stagesReady", "")) <= 5
        assert all(event.reason and len(event.message) <= MESSAGE_MAX for event in events_of(None, status))


def test_a_very_long_failure_is_cut_to_what_an_event_can_hold() -> None:
    world = World.ready()
    world.refusal = PlanError("BudgetsTooSmall", "stage and its budget, " * 200)

    message = triple(world.status(), "Ready")[2]

    assert len(message) == MESSAGE_MAX
    assert message.endswith("…")
