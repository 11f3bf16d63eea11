"""What is wrong with a pipe is told with its reason and its remedy, steadily, and the cause before what it causes."""

from __future__ import annotations

import pytest
from languagepipes_api.names import LABEL_REPLICA
from languagepipes_operator.decide.give_way import GaveWay
from languagepipes_operator.kube.informer import trimmed_pod
from languagepipes_operator.names import ANNOTATION_GAVE_WAY
from languagepipes_operator.status.failures import MESSAGE_MAX
from languagepipes_operator.status.reasons import REASONS
from support.cluster_state import NOW, ClusterState, later, triple, unready
from support.failure_cases import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_failure_is_told_with_its_reason_and_its_remedy(case: Case) -> None:
    cluster = ClusterState.ready(case.spec)
    unready(cluster.pod("end-model"))
    case.spoil(cluster)

    status = cluster.status()

    held, reason, message = triple(status, "Ready")
    assert (held, reason) == ("False", case.reason), message
    assert [part for part in case.says if part not in message] == [], message
    assert triple(status, case.also)[:2] == ("False", case.reason)
    assert len(message) <= MESSAGE_MAX
    assert "\n" not in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_failure_a_minute_later_is_the_same_to_the_letter(case: Case) -> None:
    cluster = ClusterState.ready(case.spec)
    case.spoil(cluster)
    first = cluster.status()

    assert later(cluster, seconds=60).status(first) == first


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_that_is_told_was_in_what_the_operator_forgets_of_a_pod(case: Case) -> None:
    cluster = ClusterState.ready(case.spec)
    case.spoil(cluster)
    whole = cluster.status()
    for pod in cluster.pods.values():
        trimmed_pod(pod)

    assert cluster.status() == whole


@pytest.mark.parametrize(
    "case", [case for case in CASES if REASONS.get(case.reason) is not None], ids=lambda case: case.name
)
def test_what_needs_a_person_is_no_progress(case: Case) -> None:
    cluster = ClusterState.ready(case.spec)
    unready(cluster.pod("end-model"))
    case.spoil(cluster)

    progressing = triple(cluster.status(), "Progressing")

    assert progressing[0] == ("False" if REASONS[case.reason].needs_person else "True"), progressing


def test_no_failure_of_ours_is_without_a_case() -> None:
    ours = {reason for reason, known in REASONS.items() if not known.normal}

    # InvalidSpec is of a resource that cannot be read, GaveWay is decided (see below); two are of ScalingActive; the
    # others of a pipe that was Ready: see the other tests.
    assert ours - {case.reason for case in CASES} == {
        "InvalidSpec",
        "GaveWay",
        "FewerReplicas",
        "Recovering",
        "ProgressDeadlineExceeded",
        "ReplicasIgnored",
        "LoadUnknown",
        "EvictionAdmitted",
    }


def test_a_volume_that_cannot_be_made_is_told_once() -> None:
    """The pod that waits for it is no second failure."""
    cluster = ClusterState.ready()
    next(case for case in CASES if case.name == "no such StorageClass").spoil(cluster)

    assert "VolumePending" not in triple(cluster.status(), "Ready")[2]


def test_a_replica_that_gave_way_is_told_with_when_it_is_tried_again_and_the_schedulers_words() -> None:
    cluster = ClusterState.ready()
    way = GaveWay(NOW, 2, "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
    for each in cluster.deployments.values():
        if each["metadata"]["labels"].get(LABEL_REPLICA) == "0":
            each["metadata"].setdefault("annotations", {})[ANNOTATION_GAVE_WAY] = way.annotation()
            each["spec"]["replicas"] = 0
    cluster.pods = {name: pod for name, pod in cluster.pods.items() if LABEL_REPLICA not in pod["metadata"]["labels"]}

    held, reason, message = triple(cluster.status(), "Ready")

    assert (held, reason) == ("False", "GaveWay")
    assert "attempt 3" in message
    assert "2 Insufficient nvidia.com/gpu" in message
    assert triple(cluster.status(), "Progressing")[0] == "True"
