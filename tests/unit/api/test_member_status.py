"""A member's /status and a store's progress are read by operators of other versions than the node that wrote them."""

from __future__ import annotations

import json

import pytest
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.store_answers import StoreProgress
from languagepipes_node.health import MemberState
from pydantic import ValidationError

# As nodes wrote it before there was one definition.
EARLIER = {
    "role": "end-model",
    "state": "ready",
    "message": "serving",
    "loaded_bytes": 7,
    "total_bytes": 7,
    "bundle": "ab" * 32,
    "leaf_not_after": "2027-02-27T02:00:00+00:00",
    "epoch": 3,
    "ring_ready": False,
    "ring_error": "stage 2 does not answer",
    "running": 1,
    "waiting": 0,
}


def test_what_an_earlier_node_wrote_is_read_whole_and_written_the_same() -> None:
    assert MemberStatus.model_validate_json(json.dumps(EARLIER)).to_json() == EARLIER


def test_fields_of_a_later_node_are_ignored_and_absent_ones_have_defaults() -> None:
    status = MemberStatus.model_validate_json('{"state": "loading", "gpu_clock_hz": 1}')
    assert (status.message, status.bundle, status.ring_ready, status.epoch) == ("", "", True, None)


def test_a_member_writes_the_fields_of_its_role_and_no_others() -> None:
    common = {"role", "state", "message", "loaded_bytes", "total_bytes", "bundle", "leaf_not_after"}
    assert set(MemberState("stage").status().to_json()) == common
    progress = StoreProgress(phase="Resolving")
    store = MemberState("store", extra=lambda: {"progress": progress}).status().to_json()
    assert set(store) == common | {"progress"}
    assert store["progress"] == {"phase": "Resolving"}


def test_a_member_that_writes_a_field_without_definition_fails_at_once() -> None:
    with pytest.raises(ValidationError, match="ring_redy"):
        MemberState("end-model", extra=lambda: {"ring_redy": True}).status()
