"""To which End Models the pipe's Service leads."""

from __future__ import annotations

import pytest
from languagepipes_api.member_status import MemberStatus
from languagepipes_operator.observe.endpoint import publishes_unready, takes_requests
from support.cluster_state import ClusterState, at, never_ready, unready
from support.failure_cases import END_MODEL

WAIT = MemberStatus(state="ready", ring_ready=False, ring_error="stage 2 does not answer", recovering=True)
UP_AGAIN = MemberStatus(state="ready", ring_ready=True)
GAVE_UP = MemberStatus(state="ready", ring_ready=False, ring_error="stage 2 does not answer")
LOADS = MemberStatus(state="loading", ring_ready=False)
ENDS = MemberStatus(state="stopping", ring_ready=True)


def test_the_only_end_model_is_published_before_its_ring_is_lost() -> None:
    assert publishes_unready(ClusterState.ready().snapshot)


@pytest.mark.parametrize(
    ("says", "published"),
    [(WAIT, True), (UP_AGAIN, True), (GAVE_UP, False), (LOADS, False), (ENDS, False), (None, True)],
)
def test_once_it_is_not_ready_its_own_word_decides(says: MemberStatus | None, published: bool) -> None:
    cluster = ClusterState.ready()
    cluster.publish_unready()
    unready(cluster.pod("end-model"))
    if says is not None:
        cluster.members[END_MODEL] = says
    snapshot = cluster.snapshot
    assert publishes_unready(snapshot) == published
    assert takes_requests(cluster.pod("end-model"), snapshot) == published


@pytest.mark.parametrize(
    ("before", "was_ready", "published"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_its_silence_changes_nothing_while_its_process_is_the_one_that_was_ready(
    before: bool, was_ready: bool, published: bool
) -> None:
    cluster = ClusterState.ready()
    unready(cluster.pod("end-model"))
    if not was_ready:
        never_ready(cluster.pod("end-model"))
    cluster.publish_unready(before)
    snapshot = cluster.snapshot
    assert publishes_unready(snapshot) == published
    assert takes_requests(cluster.pod("end-model"), snapshot) == published


def test_requests_wait_only_where_the_service_leads() -> None:
    cluster = ClusterState.ready()
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = WAIT
    snapshot = cluster.snapshot
    assert publishes_unready(snapshot)
    assert not takes_requests(cluster.pod("end-model"), snapshot)


def test_one_of_two_is_not_published_while_it_is_not_ready() -> None:
    cluster = ClusterState.ready({"replicas": 2})
    unready(cluster.pod("end-model"))
    cluster.members[END_MODEL] = WAIT
    snapshot = cluster.snapshot
    assert not publishes_unready(snapshot)
    assert not takes_requests(cluster.pod("end-model"), snapshot)
    assert takes_requests(cluster.pod("end-model", 1), snapshot)


def test_an_end_model_that_ends_is_not_published_nor_is_the_next_one_beside_it() -> None:
    cluster = ClusterState.ready()
    ending = cluster.pod("end-model")
    ending["metadata"]["deletionTimestamp"] = at(seconds=30)
    assert not publishes_unready(cluster.snapshot)
    cluster.add("end-model", replica=1)
    assert not publishes_unready(cluster.snapshot)


def test_a_pod_that_failed_long_ago_is_no_other_end_model() -> None:
    """As an evicted one, which stays until it is collected."""
    cluster = ClusterState.ready({"replicas": 2})
    cluster.pod("end-model", 1)["status"]["phase"] = "Failed"
    assert publishes_unready(cluster.snapshot)
