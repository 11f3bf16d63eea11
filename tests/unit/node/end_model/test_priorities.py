"""`priority`: who waits with the lowest value starts first, and who runs goes on whatever its value."""

from __future__ import annotations

import random

import torch
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.end_model.scheduler import LEAST_CHUNK, MOST_PASSES
from support.toy_engine import VOCABULARY, MakeRig, Rig, alone, preemptions


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(VOCABULARY), k=length)


def order_of_first_tokens(rig: Rig, requests: range) -> list[int]:
    for _ in range(2000):
        with torch.inference_mode():
            rig.engine.step()
        if len(rig.client.outputs) == len(requests):
            return list(rig.client.outputs)  # in the order in which the engine handed the first ones over
    raise AssertionError(f"only {[*rig.client.outputs]} got a token")


def test_waiting_requests_start_by_priority_and_those_of_one_by_arrival(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_running=1))
    for request, priority in enumerate([5, 0, -3, 5, -3, 0]):
        rig.submit(request, prompt_of(5, request), priority=priority, max_tokens=3)
    assert order_of_first_tokens(rig, range(6)) == [2, 4, 1, 5, 0, 3]
    rig.run()
    assert [rig.answer(request) for request in range(6)] == [alone(prompt_of(5, request), 3) for request in range(6)]


def test_clients_take_turns_within_a_priority(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_running=2))
    for request, (client, priority) in enumerate([("a", 1), ("a", 1), ("a", 0), ("a", 0), ("b", 1), ("b", 0)]):
        # A prompt that goes into one frame whatever the steps' times are, so that who starts first is first.
        rig.submit(request, prompt_of(LEAST_CHUNK, request), priority=priority, client=client, max_tokens=3)
    order = order_of_first_tokens(rig, range(6))
    assert (set(order[:2]), order[2]) == ({2, 5}, 3)


def test_a_short_prompt_of_a_higher_value_does_not_start_before_a_long_one(make_rig: MakeRig) -> None:
    rig = make_rig(settings=EngineSettings(max_running=1, shared_cores=True), frame_tokens=16)
    rig.submit(0, prompt_of(40), priority=0)
    rig.submit(1, prompt_of(4), priority=1)
    assert order_of_first_tokens(rig, range(2)) == [0, 1]


def test_what_runs_goes_on_while_lower_values_keep_coming(make_rig: MakeRig) -> None:
    # A long prompt of the highest value has its seat; requests of the lowest come without an end.
    rig = make_rig(settings=EngineSettings(max_running=4, shared_cores=True), frame_tokens=16, context=128, blocks=200)
    rig.submit(0, prompt_of(90), priority=9, max_tokens=4)
    rig.engine.step()
    urgent = iter(range(1, 400))
    while rig.client.finish(0) is None:
        while len(rig.engine._sequences) < 8:
            rig.submit(next(urgent), prompt_of(30), priority=-9, max_tokens=4)  # StopIteration: it starves
            rig.engine._take_commands()
        with torch.inference_mode():
            rig.engine.step()
    assert rig.answer(0) == alone(prompt_of(90), 4)
    rig.run()


def test_the_highest_value_gives_its_blocks_back_first_though_it_came_first(make_rig: MakeRig) -> None:
    rig = make_rig(blocks=12, context=64)
    preempted: list[int] = []
    rig.submit(0, prompt_of(14), priority=3, max_tokens=30)
    rig.engine.step()
    rig.submit(1, prompt_of(14, 1), priority=1, max_tokens=30)
    rig.submit(2, prompt_of(14, 2), priority=2, max_tokens=30)
    before = preemptions()
    seen: set[int] = set()
    for _ in range(2000):
        with torch.inference_mode():
            rig.engine.step()
        running = {sequence.request_id for sequence in rig.engine._sequences.running}
        preempted += [number for number in seen - running if rig.engine._sequences.find(number) is not None]
        seen = running
        if rig.idle:
            break
    assert preemptions() > before
    assert preempted[0] == 0
    assert 1 not in preempted
    assert [rig.answer(n) for n in range(3)] == [alone(prompt_of(14, n), 30) for n in range(3)]


def test_one_that_does_not_fit_is_passed_by_higher_values_as_often_as_by_others(make_rig: MakeRig) -> None:
    rig = make_rig(blocks=16, context=64)
    small = iter(range(100, 150))
    rig.submit(next(small), prompt_of(4), priority=1, max_tokens=12)
    rig.engine.step()
    rig.submit(1, prompt_of(58), priority=0, max_tokens=4)
    large = None
    while not rig.answer(1):
        while len(rig.engine._sequences) < 4:
            rig.submit(next(small), prompt_of(4), priority=1, max_tokens=12)
            rig.engine._take_commands()
        large = large or rig.engine._sequences.find(1)
        with torch.inference_mode():
            rig.engine.step()
    assert large is not None
    assert large.passed <= MOST_PASSES
    rig.run()
