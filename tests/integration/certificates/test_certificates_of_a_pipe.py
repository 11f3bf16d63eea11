"""A pipe's CA and leaf Secrets over months and years: nobody is cut off, and what is good is left alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from languagepipes_api.names import Identity
from languagepipes_operator import names
from languagepipes_operator.certificates import rotation, secrets
from languagepipes_operator.certificates.authority import issue, new_ca
from languagepipes_operator.certificates.pem import read_pair
from languagepipes_operator.observe.ca_rotation import ca_is_rotated
from support.pki_world import CA, FIRST, MEMBERS, SECOND, STORE, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A pipe whose four members run."""
    world = World(tmp_path)
    world.reconcile()
    world.start()
    return world


def rotate(world: World, *, operator: bool = True) -> int:
    """Roll until steady: how many decisions it took."""
    for count in range(1, 10):
        world.roll(operator=operator)
        if len(world.bundle) == 1:
            return count
    raise AssertionError(f"still {len(world.bundle)} certificates in the bundle")


def test_a_new_pipe_gets_a_ca_and_a_secret_for_each_member_and_they_can_talk(world: World) -> None:
    assert set(world.secrets) == {CA, *(names.leaf_secret(member) for member in MEMBERS)}
    assert len(world.bundle) == 1
    world.all_talk()


def test_the_cas_key_is_in_no_secret_that_is_mounted(world: World) -> None:
    key = world.files(CA)["tls.key"]
    assert all(key not in world.files(names.leaf_secret(member)).values() for member in MEMBERS)


def test_secrets_that_are_good_are_returned_as_they_are(world: World) -> None:
    before = dict(world.secrets)
    world.pass_time(days=20)
    decision = secrets.decide(world.snapshot(), MEMBERS)
    assert not decision.changes
    for manifest in decision.secrets:
        live = before[manifest["metadata"]["name"]]
        assert manifest["data"] == live["data"]
        assert manifest["metadata"].get("annotations", {}) == live["metadata"]["annotations"]
        assert "resourceVersion" not in manifest["metadata"]


def test_the_next_look_is_due_when_the_first_leaf_is_two_thirds_through(world: World) -> None:
    decision = world.reconcile()
    assert decision.requeue_at - world.now == pytest.approx(timedelta(days=60), abs=timedelta(hours=1))
    world.now = decision.requeue_at
    assert len(world.roll().changes) == len(MEMBERS)


def test_months_pass_and_at_every_moment_all_members_can_talk(world: World) -> None:
    first = world.bundle
    for _ in range(8):
        world.pass_time(days=30)
        decision = world.roll()
        assert decision.leaves_expire_at - world.now > timedelta(days=29)
    assert world.bundle == first


def test_the_ca_is_rotated_at_two_thirds_of_its_life_and_all_members_can_talk_meanwhile(world: World) -> None:
    old = world.bundle
    world.sleep_until_year(6.4)
    assert world.bundle == old
    for _ in range(6):
        world.pass_time(days=30)
        world.roll()
    assert len(world.bundle) == 1
    assert world.bundle != old
    assert world.reconcile().ca_expires_at - world.now > timedelta(days=3500)


def test_a_person_may_ask_for_a_new_ca_once(world: World) -> None:
    old = world.bundle
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "2026-01-01"})
    assert rotate(world) == 3
    new = world.bundle
    assert new != old
    assert not world.roll().changes
    assert world.bundle == new


def test_while_the_ca_is_rotated_members_are_asked_for_their_bundle(world: World) -> None:
    assert not ca_is_rotated(world.secrets)
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    decision = world.reconcile()
    assert ca_is_rotated(world.secrets)
    assert decision.requeue_at - world.now == timedelta(seconds=rotation.ASK_SECONDS)


def test_nothing_is_issued_from_the_new_ca_before_all_members_trust_it(world: World) -> None:
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    world.reconcile()
    for member in MEMBERS[:-1]:
        world.sync(member)
    decision = world.reconcile()
    assert decision.waiting_for == (world.pods[MEMBERS[-1]].name,)
    assert not decision.changes
    world.all_talk(decision)


def test_the_old_ca_is_trusted_until_the_last_member_has_its_new_leaf(world: World) -> None:
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    world.roll()
    world.reconcile()  # every leaf is of the new CA now
    for member in MEMBERS[:-1]:
        world.sync(member)
    for _ in range(3):
        decision = world.reconcile()
        assert decision.waiting_for == (world.pods[MEMBERS[-1]].name,)
        assert len(world.bundle) == 2
        world.all_talk(decision)


def test_a_running_member_that_does_not_answer_holds_a_rotation_up(world: World) -> None:
    world.pods[SECOND].answers = False
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(5):
        world.pass_time(minutes=10)
        world.roll()
    assert len(world.bundle) == 2


def test_a_pod_whose_container_does_not_run_holds_a_rotation_up_for_minutes_only(world: World) -> None:
    world.pods[SECOND].running = False
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    world.roll()
    assert world.roll().waiting_for
    world.pass_time(minutes=6)
    assert not world.roll().waiting_for
    world.pass_time(minutes=6)
    world.roll()
    assert len(world.bundle) == 1


def test_a_silent_member_is_given_up_before_the_old_ca_ends(world: World) -> None:
    old = world.bundle
    world.sleep_until_year(9.7)
    world.pods[SECOND].answers = False
    world.roll()
    assert old[0] in world.bundle
    for _ in range(5):
        world.pass_time(days=20)
        world.roll()
    assert len(world.bundle) == 1
    assert world.bundle != old


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_deleted_ca_secret_is_made_anew_without_cutting_anybody_off(world: World, steps: int) -> None:
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps):
        world.roll()
    old = world.bundle
    del world.secrets[CA]
    rotate(world, operator=False)
    assert not set(world.bundle) & set(old)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_ca_secret_deleted_while_members_lag_cuts_nobody_off(world: World, steps: int) -> None:
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps - 1):
        world.roll()
    world.reconcile()
    world.sync(FIRST)
    del world.secrets[CA]
    world.reconcile()
    world.all_talk()
    for member in MEMBERS:
        world.sync(member)
        world.all_talk()
    rotate(world)


def test_leaves_are_left_as_they_are_while_the_key_of_their_ca_is_lost(world: World) -> None:
    certificates = {member: world.files(names.leaf_secret(member))["tls.crt"] for member in MEMBERS}
    world.pass_time(days=61)
    del world.secrets[CA]
    world.roll(operator=False)
    assert {member: world.files(names.leaf_secret(member))["tls.crt"] for member in MEMBERS} == certificates


@pytest.mark.parametrize(
    "files",
    [
        {"tls_key": b"nonsense"},
        {"tls_crt": b""},
        {"ca_crt": b"nonsense"},
        {"ca_crt": new_ca("default", "other").certificate},
        {"tls_key": new_ca("default", "qwen3").key},
    ],
    ids=["key", "no certificate", "bundle", "another bundle", "another key"],
)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_ca_secret_broken_by_hand_is_made_whole_and_nobody_is_cut_off(
    world: World, files: dict[str, bytes], steps: int
) -> None:
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps):
        world.roll()
    world.edit(CA, **files)
    rotate(world, operator=False)
    assert not world.roll().changes


def test_a_broken_leaf_secret_is_made_anew_and_the_others_are_left(world: World) -> None:
    name = names.leaf_secret(FIRST)
    stranger = new_ca("default", "qwen3", now=world.now)
    foreign = issue(stranger, FIRST, now=world.now)
    ours = read_pair(world.files(CA)["tls.crt"], world.files(CA)["tls.key"])
    assert ours is not None
    other_name = issue(ours, SECOND, now=world.now)
    expired = issue(ours, FIRST, now=world.now - timedelta(days=100))
    early = issue(ours, FIRST, now=world.now + timedelta(days=2))
    for files in (
        {"tls_key": b"nonsense"},
        {"tls_key": other_name.key},
        {"tls_crt": b"\xff"},
        {"tls_crt": foreign.certificate, "tls_key": foreign.key, "ca_crt": stranger.certificate},
        {"tls_crt": other_name.certificate, "tls_key": other_name.key},
        {"tls_crt": expired.certificate, "tls_key": expired.key},
        {"tls_crt": early.certificate, "tls_key": early.key},
    ):
        world.edit(name, **files)
        world.written.clear()
        decision = world.roll_after_break()
        assert world.written == [name]
        assert len(decision.changes) == 1
        assert str(FIRST) in decision.changes[0]


def test_a_bundle_edited_in_a_leaf_secret_is_put_back_with_the_leaf_kept(world: World) -> None:
    name = names.leaf_secret(FIRST)
    before = world.files(name)
    world.edit(name, ca_crt=new_ca("default", "qwen3").certificate)
    decision = world.reconcile()
    assert world.files(name) == before
    assert not decision.changes


def test_a_changed_secret_is_written_only_upon_the_version_that_was_seen(world: World) -> None:
    version = world.secrets[names.leaf_secret(FIRST)]["metadata"]["resourceVersion"]
    world.edit(names.leaf_secret(FIRST), tls_key=b"nonsense")
    decision = secrets.decide(world.snapshot(), MEMBERS)
    told = {each["metadata"]["name"]: each["metadata"].get("resourceVersion") for each in decision.secrets}
    assert told == {name: version if name == names.leaf_secret(FIRST) else None for name in world.secrets}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_member_that_joins_during_a_rotation_talks_to_all(world: World, steps: int) -> None:
    world.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps):
        world.roll()
    third = Identity("default", "qwen3", 0, "stage", 3)
    world.members = (*MEMBERS, third)
    world.reconcile()
    world.start(third)
    world.all_talk()
    rotate(world)


def test_a_member_that_left_needs_no_secret(world: World) -> None:
    decision = secrets.decide(world.snapshot(), (STORE,))
    assert [each["metadata"]["name"] for each in decision.secrets] == [CA, names.leaf_secret(STORE)]


def test_the_operators_own_certificate_can_be_had_before_any_decision(world: World) -> None:
    credentials = secrets.credentials(world.snapshot())
    assert credentials is not None
    assert rotation.bundle_hash(credentials.bundle) == rotation.bundle_hash(world.files(CA)["ca.crt"])
    assert secrets.credentials(World(world.folder).snapshot()) is None
