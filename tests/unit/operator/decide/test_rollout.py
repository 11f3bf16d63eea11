"""One step of a rollout, and where steps lead: never fewer replicas that serve than allowed, never more that stand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languagepipes_api.spec import RolloutSpec
from languagepipes_operator.decide.rollout import MIN_READY, Replica, Rollout, next_step

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)
NEW, OLD = True, False


def serving(number: int, updated: bool, *, open_requests: int | None = None) -> Replica:
    return Replica(number, updated, ready_since=LONG_AGO, holds_requests=True, open_requests=open_requests)


def starting(number: int, updated: bool) -> Replica:
    return Replica(number, updated)


def recovering(number: int, updated: bool) -> Replica:
    return Replica(number, updated, holds_requests=True)


def going(number: int) -> Replica:
    return Replica(number, updated=False, draining=True)


def leaving(number: int, *, ready: bool = True) -> Replica:
    """It runs what is asked for, and the node of its End Model is being emptied."""
    return Replica(number, NEW, ready_since=LONG_AGO if ready else None, holds_requests=True, leaving=True)


def step(*live: Replica, wanted: int = 1, surge: int = 1, unavailable: int = 0, taken: tuple[int, ...] = ()) -> Rollout:
    limits = RolloutSpec(max_surge=surge, max_unavailable=unavailable)
    return next_step(live, wanted=wanted, limits=limits, taken=taken, now=NOW)


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        pytest.param([], 3, Rollout((0, 1, 2)), id="a fresh pipe gets all at once"),
        pytest.param([serving(0, OLD)], 1, Rollout((1,), (0,)), id="a new one beside the old"),
        pytest.param([serving(0, OLD), starting(1, NEW)], 1, Rollout((1,), (0,)), id="the old one serves meanwhile"),
        pytest.param([serving(0, OLD), serving(1, NEW)], 1, Rollout((1,), (), (0,)), id="the new one takes over"),
        pytest.param([going(0), serving(1, NEW)], 1, Rollout((1,), (), (0,)), id="what goes, goes on going"),
        pytest.param([going(0), serving(1, OLD)], 1, Rollout((), (1,), (0,)), id="no room before it is gone"),
        pytest.param([serving(0, NEW), starting(1, OLD)], 1, Rollout((0,), (), (1,)), id="undone before it was ready"),
        pytest.param([starting(0, OLD)], 1, Rollout((1,), (), (0,)), id="one that never was ready goes at once"),
        pytest.param(
            [recovering(0, OLD), starting(1, NEW)], 1, Rollout((1,), (0,)), id="requests wait there: it stays"
        ),
        pytest.param([recovering(0, OLD), serving(1, NEW)], 1, Rollout((1,), (), (0,)), id="until another serves"),
        pytest.param([serving(0, OLD), serving(1, OLD)], 2, Rollout((2,), (0, 1)), id="one more than asked for"),
        pytest.param(
            [serving(0, OLD), serving(1, OLD), serving(2, NEW)], 2, Rollout((2,), (0,), (1,)), id="then one goes"
        ),
        pytest.param([serving(0, NEW), serving(1, NEW)], 1, Rollout((0,), (), (1,)), id="scaled in: the latest goes"),
        pytest.param([starting(0, NEW), serving(1, NEW)], 1, Rollout((1,), (), (0,)), id="scaled in: unready first"),
        pytest.param([recovering(0, NEW), serving(1, NEW)], 1, Rollout((1,), (), (0,)), id="then one that recovers"),
        pytest.param([serving(0, NEW), serving(1, NEW)], 0, Rollout((), (), (0, 1)), id="none is wanted"),
        pytest.param([serving(2, NEW)], 2, Rollout((0, 2)), id="scaled out: the lowest number that is free"),
        pytest.param(
            [serving(0, NEW, open_requests=2), serving(1, NEW, open_requests=7)],
            1,
            Rollout((1,), (), (0,)),
            id="scaled in: the one with the fewest requests",
        ),
        pytest.param(
            [serving(0, OLD), starting(1, OLD), serving(2, NEW)],
            2,
            Rollout((2,), (0,), (1,)),
            id="the one that does not serve goes first",
        ),
    ],
)
def test_a_step_at_the_default_limits(live: list[Replica], wanted: int, expected: Rollout) -> None:
    assert step(*live, wanted=wanted) == expected


@pytest.mark.parametrize(
    ("live", "wanted", "expected"),
    [
        pytest.param([serving(0, OLD)], 1, Rollout((), (), (0,)), id="the old one goes first"),
        pytest.param([going(0)], 1, Rollout((), (), (0,)), id="until it is gone"),
        pytest.param([serving(0, OLD), serving(1, OLD)], 2, Rollout((), (0,), (1,)), id="one at a time"),
        pytest.param([serving(0, OLD), starting(1, NEW)], 2, Rollout((1,), (0,)), id="the next waits for the first"),
    ],
)
def test_a_full_cluster_replaces_one_after_another(live: list[Replica], wanted: int, expected: Rollout) -> None:
    assert step(*live, wanted=wanted, surge=0, unavailable=1) == expected


def test_a_number_that_a_pod_still_has_is_given_to_no_other() -> None:
    assert step(serving(0, OLD), taken=(0, 1, 2)) == Rollout((3,), (0,))


def test_a_replica_that_has_only_just_become_ready_takes_nothing_over() -> None:
    ready = NOW - MIN_READY + timedelta(seconds=1)
    new = Replica(1, updated=True, ready_since=ready, holds_requests=True)

    assert step(serving(0, OLD), new) == Rollout((1,), (0,), due=NOW + timedelta(seconds=1))
    assert step(serving(0, OLD), replace(new, ready_since=NOW - MIN_READY)) == Rollout((1,), (), (0,))


@pytest.mark.parametrize(
    ("live", "wanted", "surge", "expected"),
    [
        pytest.param(
            [leaving(0)], 1, 1, Rollout((0, 1), leaving=(0,), beside=(1,)), id="one on another node beside it"
        ),
        pytest.param(
            [leaving(0), starting(1, NEW)], 1, 1, Rollout((0, 1), leaving=(0,), beside=(1,)), id="it serves meanwhile"
        ),
        pytest.param([leaving(0), serving(1, NEW)], 1, 1, Rollout((1,), (), (0,)), id="until the other does"),
        pytest.param([serving(0, NEW), starting(1, NEW)], 1, 1, Rollout((0,), (), (1,)), id="uncordoned: it stays"),
        pytest.param([serving(0, NEW), serving(1, NEW)], 1, 1, Rollout((0,), (), (1,)), id="also if both serve"),
        pytest.param([leaving(0)], 1, 0, Rollout((0,), leaving=(0,)), id="no surge, no other replica: it stays"),
        pytest.param([leaving(0), serving(1, NEW)], 2, 0, Rollout((1,), (), (0,)), id="no surge: the other serves"),
        pytest.param(
            [leaving(0), leaving(1)], 2, 1, Rollout((0, 1, 2), leaving=(0, 1), beside=(2,)), id="both have to leave"
        ),
        pytest.param(
            [leaving(0), leaving(1), serving(2, NEW)], 2, 1, Rollout((0, 2), (), (1,), leaving=(0,)), id="one by one"
        ),
        pytest.param(
            [leaving(0, ready=False), starting(1, NEW)],
            1,
            1,
            Rollout((0, 1), leaving=(0,), beside=(1,)),
            id="requests wait there: it stays",
        ),
        pytest.param([leaving(0)], 0, 1, Rollout((), (), (0,)), id="none is wanted"),
        pytest.param([leaving(0), serving(1, NEW)], 1, 1, Rollout((1,), (), (0,)), id="scaled in: it goes first"),
    ],
)
def test_a_replica_whose_node_is_emptied_goes_once_another_serves(
    live: list[Replica], wanted: int, surge: int, expected: Rollout
) -> None:
    assert step(*live, wanted=wanted, surge=surge, unavailable=1 - surge) == expected


@dataclass
class World:
    """A cluster that carries out what is decided. Which replica is where on its way is drawn from outside."""

    limits: RolloutSpec
    wanted: int
    revision: int = 0
    now: datetime = NOW
    revisions: dict[int, int] = field(default_factory=dict)
    live: dict[int, Replica] = field(default_factory=dict)

    def decide(self) -> Rollout:
        seen = [replace(each, updated=self.revisions[number] == self.revision) for number, each in self.live.items()]
        found = next_step(seen, wanted=self.wanted, limits=self.limits, now=self.now)
        self.check(found)
        for number in found.updated:
            if number not in self.live:
                self.live[number], self.revisions[number] = Replica(number, updated=True), self.revision
        for number in found.draining:
            self.live[number] = replace(self.live[number], draining=True, ready_since=None, holds_requests=False)
        return found

    def check(self, found: Rollout) -> None:
        available = {number for number, each in self.live.items() if each.is_available(self.now)}
        taken_away = available & {*found.draining}
        if taken_away:
            assert len(available - taken_away) >= self.wanted - self.limits.max_unavailable
        new = {*found.updated} - self.live.keys()
        if new:
            assert len(self.live) + len(new) <= self.wanted + self.limits.max_surge
        everybody = [*found.updated, *found.outdated, *found.draining]
        assert len(everybody) == len({*everybody})
        assert {*everybody} >= self.live.keys()
        assert len({*found.updated} - {*found.leaving}) <= self.wanted
        # A node that is being emptied never leaves the pipe without a replica that serves.
        emptied = {number for number in taken_away if self.live[number].leaving}
        if emptied and self.wanted and all(self.revisions[number] == self.revision for number in emptied):
            assert available - taken_away

    def become_ready(self, number: int) -> None:
        if number in self.live and not self.live[number].draining:
            self.live[number] = replace(self.live[number], ready_since=self.now, holds_requests=True)

    def lose_a_stage(self, number: int) -> None:
        if number in self.live:
            self.live[number] = replace(self.live[number], ready_since=None)

    def empty(self, number: int) -> None:
        """Its node is emptied; or is not any more."""
        if number in self.live and self.live[number].holds_requests:
            self.live[number] = replace(self.live[number], leaving=not self.live[number].leaving)

    def end(self, number: int) -> None:
        if number in self.live and self.live[number].draining:
            del self.live[number], self.revisions[number]

    def settle(self) -> None:
        """Whatever was asked for last comes, if pods do what they should."""
        for _ in range(200):
            self.now += timedelta(seconds=10)
            before = dict(self.revisions)
            found = self.decide()
            for number in list(self.live):
                if self.live[number].ready_since is None:
                    self.become_ready(number)
                self.end(number)
            if not (found.draining or found.outdated or found.leaving) and before == self.revisions:
                break
        assert sorted(self.revisions.values()) == [self.revision] * self.wanted
        assert len(found.updated) == self.wanted


limits_of_rollouts = st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any)
happenings = st.lists(
    st.tuples(st.sampled_from(["ready", "lost", "end", "decide", "revision", "replicas", "empty"]), st.integers(0, 5)),
    max_size=40,
)


@settings(deadline=None)
@given(limits_of_rollouts, st.integers(0, 4), happenings)
def test_whatever_happens_the_limits_hold_and_what_was_asked_last_is_reached(
    limits: tuple[int, int], wanted: int, happened: list[tuple[str, int]]
) -> None:
    world = World(RolloutSpec(max_surge=limits[0], max_unavailable=limits[1]), wanted)
    world.settle()
    for what, number in happened:
        world.now += timedelta(seconds=2)
        if what == "ready":
            world.become_ready(number)
        elif what == "lost":
            world.lose_a_stage(number)
        elif what == "end":
            world.end(number)
        elif what == "empty":
            world.empty(number)
        elif what == "revision":
            world.revision = number % 3
        elif what == "replicas":
            world.wanted = number
        world.decide()
    if limits[0] == 0 and world.wanted <= 1:  # nothing can take over: it stays until its node is wanted again
        world.live = {key: replace(each, leaving=False) for key, each in world.live.items()}
    world.settle()


@settings(deadline=None)
@given(limits_of_rollouts, st.integers(1, 4))
def test_an_undone_rollout_moves_nothing_that_serves(limits: tuple[int, int], wanted: int) -> None:
    world = World(RolloutSpec(max_surge=max(1, limits[0]), max_unavailable=0), wanted)
    world.settle()
    served = dict(world.revisions)
    world.revision = 1
    for _ in range(5):  # no new one becomes ready
        world.now += timedelta(minutes=10)
        world.decide()
    assert len(world.live) > wanted
    world.revision = 0
    world.settle()

    assert world.revisions == served


@pytest.mark.parametrize("ago", [timedelta(0), MIN_READY])
def test_one_that_is_ready_is_not_taken_for_one_that_only_holds_requests(ago: timedelta) -> None:
    ready = replace(serving(0, OLD), ready_since=NOW - ago)

    assert step(ready, recovering(1, NEW)).outdated == (0,)
    assert step(ready, serving(1, NEW)).draining == (0,)
