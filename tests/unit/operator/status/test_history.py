"""The last revisions that were asked for: what each changed, when, and what became of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from languagepipes_api.status import LanguagePipeStatus
from languagepipes_operator.status.status import status_of
from support.cluster_state import ClusterState, at, later, unready

Status = dict[str, Any]


def status_at(
    revision: str, before: Status | None, *, ready: bool = True, age: float = 0, image: str = "", **spec: Any
) -> Status:
    """Of a pipe that is asked to run that revision. age: how many seconds after the first one."""
    generation = 1 + (before or {}).get("observedGeneration", 0)
    cluster = later(ClusterState.ready(spec, generation=generation), seconds=age)
    if not ready:
        unready(cluster.pod("end-model"))
    outcome = replace(cluster.outcome, revision=revision)
    if image and outcome.plan is not None:
        outcome = replace(outcome, plan=replace(outcome.plan, node_image=image))
    return status_of(cluster.snapshot, outcome, before)


def told(status: Status) -> list[tuple[str, str]]:
    return [(each["revision"], each["outcome"]) for each in status["history"]]


def test_an_entry_says_what_changed_in_words_of_the_spec_and_when() -> None:
    first = status_at("aaaa", None)
    second = status_at("bbbb", first, ready=False, age=100, server={"maxQueuedRequests": 9}, stages={"count": 2})
    third = status_at("bbbb", second, age=200, server={"maxQueuedRequests": 9}, stages={"count": 2})

    newest, before = second["history"]
    assert newest["changes"] == ["server.maxQueuedRequests: unset -> 9", "stages.count: 3 -> 2"]
    assert (newest["askedAt"], newest["generation"], newest["outcome"]) == (at(seconds=-100), 2, "Progressing")
    assert (before["outcome"], before.get("changes", [])) == ("Complete", [])
    assert (third["history"][0]["outcome"], third["history"][0]["completedAt"]) == ("Complete", at(seconds=-200))
    assert third["history"][0]["askedAt"] == newest["askedAt"]


def test_what_a_pipe_runs_since_before_there_was_a_history_has_the_time_when_it_was_ready() -> None:
    old = status_at("aaaa", None)
    del old["history"]

    (entry,) = status_at("aaaa", old, age=900)["history"]

    assert (entry["outcome"], entry["askedAt"], entry["completedAt"]) == ("Complete", at(), at())


def test_an_idle_pipe_and_an_edit_that_shapes_no_pod_add_nothing() -> None:
    first = status_at("aaaa", None)

    again = status_at("aaaa", first, age=3600, paused=False, rollout={"maxSurge": 2})
    lost = status_at("aaaa", again, ready=False, age=7200)

    assert again["history"] == lost["history"] == first["history"]


def test_what_became_of_each_is_told() -> None:
    first = status_at("aaaa", None)
    second = status_at("bbbb", first, ready=False)
    undone = status_at("aaaa", second)
    third = status_at("cccc", undone, ready=False)
    fourth = status_at("dddd", third, ready=False)

    assert told(undone) == [("aaaa", "Complete"), ("bbbb", "Undone"), ("aaaa", "Complete")]
    assert told(fourth)[:2] == [("dddd", "Progressing"), ("cccc", "Superseded")]


def test_a_revision_that_is_late_says_so_until_it_is_complete() -> None:
    first = status_at("aaaa", None)
    late = status_at("bbbb", first, ready=False)
    late["history"][0]["outcome"] = "ProgressDeadlineExceeded"

    given_up = status_at("aaaa", late)
    there = status_at("bbbb", late)

    assert told(given_up)[1] == ("bbbb", "ProgressDeadlineExceeded")
    assert told(there)[0] == ("bbbb", "Complete")


def test_another_node_image_is_a_change() -> None:
    first = status_at("aaaa", None, image="node:1")

    status = status_at("bbbb", first, image="node:2")

    assert status["history"][0]["changes"] == ["node image: node:1 -> node:2"]
    assert status["history"][0]["nodeImage"] == "node:2"


def test_only_the_newest_ten_stay_and_only_the_newest_has_the_spec() -> None:
    status: Status | None = None
    for number in range(14):
        status = status_at(f"{number:04}", status)

    assert status is not None
    assert [each["revision"] for each in status["history"]] == [f"{number:04}" for number in range(13, 3, -1)]
    assert ["spec" in each for each in status["history"]] == [True, *[False] * 9]


def test_a_large_spec_stays_within_the_bounds_and_is_told_as_a_whole() -> None:
    def stages(memory: str) -> Any:
        template = {"nodeSelector": {f"label-{place}": "x" * 60 for place in range(16)}}
        entries = [{"name": f"s{place}", "memory": memory, "template": template} for place in range(28)]
        return {"list": entries}

    first = status_at("aaaa", None, stages=stages("1Gi"))
    second = status_at("bbbb", first, stages=stages("2Gi"))

    LanguagePipeStatus.model_validate(second)  # its bounds are the CRD's
    assert second["history"][0]["changes"] == ["stages: changed"]


def test_many_changes_are_counted() -> None:
    first = status_at("aaaa", None)

    stages = {"list": [{"name": f"s{place:02}", "layers": 1} for place in range(29)]}
    changes = status_at("bbbb", first, stages=stages)["history"][0]["changes"]

    assert len(changes) == 16
    assert changes[-1].startswith("and ")


def test_a_history_of_another_version_is_begun_anew() -> None:
    first = status_at("aaaa", None)
    first["history"][0]["unknown"] = 1

    assert told(status_at("bbbb", first)) == [("bbbb", "Complete")]
