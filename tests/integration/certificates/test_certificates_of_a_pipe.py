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
from support.mounted_certificates import CA, FIRST, MEMBERS, SECOND, STORE, MountedCertificates


@pytest.fixture
def mounted(tmp_path: Path) -> MountedCertificates:
    """A pipe whose four members run."""
    mounted = MountedCertificates(tmp_path)
    mounted.reconcile()
    mounted.start()
    return mounted


def rotate(mounted: MountedCertificates, *, operator: bool = True) -> int:
    """Roll until steady: how many decisions it took."""
    for count in range(1, 10):
        mounted.roll(operator=operator)
        if len(mounted.bundle) == 1:
            return count
    raise AssertionError(f"still {len(mounted.bundle)} certificates in the bundle")


def test_a_new_pipe_gets_a_ca_and_a_secret_for_each_member_and_they_can_talk(mounted: MountedCertificates) -> None:
    assert set(mounted.secrets) == {CA, *(names.leaf_secret(member) for member in MEMBERS)}
    assert len(mounted.bundle) == 1
    mounted.all_talk()


def test_the_cas_key_is_in_no_secret_that_is_mounted(mounted: MountedCertificates) -> None:
    key = mounted.files(CA)["tls.key"]
    assert all(key not in mounted.files(names.leaf_secret(member)).values() for member in MEMBERS)


def test_secrets_that_are_good_are_returned_as_they_are(mounted: MountedCertificates) -> None:
    before = dict(mounted.secrets)
    mounted.pass_time(days=20)
    decision = secrets.decide(mounted.snapshot(), MEMBERS)
    assert not decision.changes
    for manifest in decision.secrets:
        live = before[manifest["metadata"]["name"]]
        assert manifest["data"] == live["data"]
        assert manifest["metadata"].get("annotations", {}) == live["metadata"]["annotations"]
        assert "resourceVersion" not in manifest["metadata"]


def test_the_next_look_is_due_when_the_first_leaf_is_two_thirds_through(mounted: MountedCertificates) -> None:
    decision = mounted.reconcile()
    assert decision.requeue_at - mounted.now == pytest.approx(timedelta(days=60), abs=timedelta(hours=1))
    mounted.now = decision.requeue_at
    assert len(mounted.roll().changes) == len(MEMBERS)


def test_months_pass_and_at_every_moment_all_members_can_talk(mounted: MountedCertificates) -> None:
    first = mounted.bundle
    for _ in range(8):
        mounted.pass_time(days=30)
        decision = mounted.roll()
        assert decision.leaves_expire_at - mounted.now > timedelta(days=29)
    assert mounted.bundle == first


def test_the_ca_is_rotated_at_two_thirds_of_its_life_and_all_members_can_talk_meanwhile(
    mounted: MountedCertificates,
) -> None:
    old = mounted.bundle
    mounted.sleep_until_year(6.4)
    assert mounted.bundle == old
    for _ in range(6):
        mounted.pass_time(days=30)
        mounted.roll()
    assert len(mounted.bundle) == 1
    assert mounted.bundle != old
    assert mounted.reconcile().ca_expires_at - mounted.now > timedelta(days=3500)


def test_a_person_may_ask_for_a_new_ca_once(mounted: MountedCertificates) -> None:
    old = mounted.bundle
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "2026-01-01"})
    assert rotate(mounted) == 3
    new = mounted.bundle
    assert new != old
    assert not mounted.roll().changes
    assert mounted.bundle == new


def test_while_the_ca_is_rotated_members_are_asked_for_their_bundle(mounted: MountedCertificates) -> None:
    assert not ca_is_rotated(mounted.secrets)
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    decision = mounted.reconcile()
    assert ca_is_rotated(mounted.secrets)
    assert decision.requeue_at - mounted.now == timedelta(seconds=rotation.ASK_SECONDS)


def test_nothing_is_issued_from_the_new_ca_before_all_members_trust_it(mounted: MountedCertificates) -> None:
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    mounted.reconcile()
    for member in MEMBERS[:-1]:
        mounted.sync(member)
    decision = mounted.reconcile()
    assert decision.waiting_for == (mounted.pods[MEMBERS[-1]].name,)
    assert not decision.changes
    mounted.all_talk(decision)


def test_the_old_ca_is_trusted_until_the_last_member_has_its_new_leaf(mounted: MountedCertificates) -> None:
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    mounted.roll()
    mounted.reconcile()  # every leaf is of the new CA now
    for member in MEMBERS[:-1]:
        mounted.sync(member)
    for _ in range(3):
        decision = mounted.reconcile()
        assert decision.waiting_for == (mounted.pods[MEMBERS[-1]].name,)
        assert len(mounted.bundle) == 2
        mounted.all_talk(decision)


def test_a_running_member_that_does_not_answer_holds_a_rotation_up(mounted: MountedCertificates) -> None:
    mounted.pods[SECOND].answers = False
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(5):
        mounted.pass_time(minutes=10)
        mounted.roll()
    assert len(mounted.bundle) == 2


def test_a_pod_whose_container_does_not_run_holds_a_rotation_up_for_minutes_only(mounted: MountedCertificates) -> None:
    mounted.pods[SECOND].running = False
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    mounted.roll()
    assert mounted.roll().waiting_for
    mounted.pass_time(minutes=6)
    assert not mounted.roll().waiting_for
    mounted.pass_time(minutes=6)
    mounted.roll()
    assert len(mounted.bundle) == 1


def test_a_silent_member_is_given_up_before_the_old_ca_ends(mounted: MountedCertificates) -> None:
    old = mounted.bundle
    mounted.sleep_until_year(9.7)
    mounted.pods[SECOND].answers = False
    mounted.roll()
    assert old[0] in mounted.bundle
    for _ in range(5):
        mounted.pass_time(days=20)
        mounted.roll()
    assert len(mounted.bundle) == 1
    assert mounted.bundle != old


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_deleted_ca_secret_is_made_anew_without_cutting_anybody_off(mounted: MountedCertificates, steps: int) -> None:
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps):
        mounted.roll()
    old = mounted.bundle
    del mounted.secrets[CA]
    rotate(mounted, operator=False)
    assert not set(mounted.bundle) & set(old)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_ca_secret_deleted_while_members_lag_cuts_nobody_off(mounted: MountedCertificates, steps: int) -> None:
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps - 1):
        mounted.roll()
    mounted.reconcile()
    mounted.sync(FIRST)
    del mounted.secrets[CA]
    mounted.reconcile()
    mounted.all_talk()
    for member in MEMBERS:
        mounted.sync(member)
        mounted.all_talk()
    rotate(mounted)


def test_leaves_are_left_as_they_are_while_the_key_of_their_ca_is_lost(mounted: MountedCertificates) -> None:
    certificates = {member: mounted.files(names.leaf_secret(member))["tls.crt"] for member in MEMBERS}
    mounted.pass_time(days=61)
    del mounted.secrets[CA]
    mounted.roll(operator=False)
    assert {member: mounted.files(names.leaf_secret(member))["tls.crt"] for member in MEMBERS} == certificates


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
    mounted: MountedCertificates, files: dict[str, bytes], steps: int
) -> None:
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps):
        mounted.roll()
    mounted.edit(CA, **files)
    rotate(mounted, operator=False)
    assert not mounted.roll().changes


def test_a_broken_leaf_secret_is_made_anew_and_the_others_are_left(mounted: MountedCertificates) -> None:
    name = names.leaf_secret(FIRST)
    stranger = new_ca("default", "qwen3", now=mounted.now)
    foreign = issue(stranger, FIRST, now=mounted.now)
    ours = read_pair(mounted.files(CA)["tls.crt"], mounted.files(CA)["tls.key"])
    assert ours is not None
    other_name = issue(ours, SECOND, now=mounted.now)
    expired = issue(ours, FIRST, now=mounted.now - timedelta(days=100))
    early = issue(ours, FIRST, now=mounted.now + timedelta(days=2))
    for files in (
        {"tls_key": b"nonsense"},
        {"tls_key": other_name.key},
        {"tls_crt": b"\xff"},
        {"tls_crt": foreign.certificate, "tls_key": foreign.key, "ca_crt": stranger.certificate},
        {"tls_crt": other_name.certificate, "tls_key": other_name.key},
        {"tls_crt": expired.certificate, "tls_key": expired.key},
        {"tls_crt": early.certificate, "tls_key": early.key},
    ):
        mounted.edit(name, **files)
        mounted.written.clear()
        decision = mounted.roll_after_break()
        assert mounted.written == [name]
        assert len(decision.changes) == 1
        assert str(FIRST) in decision.changes[0]


def test_a_bundle_edited_in_a_leaf_secret_is_put_back_with_the_leaf_kept(mounted: MountedCertificates) -> None:
    name = names.leaf_secret(FIRST)
    before = mounted.files(name)
    mounted.edit(name, ca_crt=new_ca("default", "qwen3").certificate)
    decision = mounted.reconcile()
    assert mounted.files(name) == before
    assert not decision.changes


def test_a_changed_secret_is_written_only_upon_the_version_that_was_seen(mounted: MountedCertificates) -> None:
    version = mounted.secrets[names.leaf_secret(FIRST)]["metadata"]["resourceVersion"]
    mounted.edit(names.leaf_secret(FIRST), tls_key=b"nonsense")
    decision = secrets.decide(mounted.snapshot(), MEMBERS)
    told = {each["metadata"]["name"]: each["metadata"].get("resourceVersion") for each in decision.secrets}
    assert told == {name: version if name == names.leaf_secret(FIRST) else None for name in mounted.secrets}


@pytest.mark.parametrize("steps", [1, 2])
def test_a_member_that_joins_during_a_rotation_talks_to_all(mounted: MountedCertificates, steps: int) -> None:
    mounted.annotate(CA, **{secrets.ROTATE_ANNOTATION: "now"})
    for _ in range(steps):
        mounted.roll()
    third = Identity("default", "qwen3", 0, "stage", 3)
    mounted.members = (*MEMBERS, third)
    mounted.reconcile()
    mounted.start(third)
    mounted.all_talk()
    rotate(mounted)


def test_a_member_that_left_needs_no_secret(mounted: MountedCertificates) -> None:
    decision = secrets.decide(mounted.snapshot(), (STORE,))
    assert [each["metadata"]["name"] for each in decision.secrets] == [CA, names.leaf_secret(STORE)]


def test_the_operators_own_certificate_can_be_had_before_any_decision(mounted: MountedCertificates) -> None:
    credentials = secrets.credentials(mounted.snapshot())
    assert credentials is not None
    assert rotation.bundle_hash(credentials.bundle) == rotation.bundle_hash(mounted.files(CA)["ca.crt"])
    assert secrets.credentials(MountedCertificates(mounted.folder).snapshot()) is None
