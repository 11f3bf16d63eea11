"""What /metrics says of requests, the engine and the HTTP side of its queues together."""

from __future__ import annotations

import asyncio
from typing import get_args

import torch
from languagepipes_node.end_model.engine import Engine
from languagepipes_node.end_model.openai.bridge import EngineBridge, SequenceRequest
from languagepipes_node.wire.close import CloseCode
from prometheus_client import REGISTRY
from support.toy_engine import GREEDY, MakeRig

_COUNTED = (
    "languagepipes_prompt_tokens_total",
    "languagepipes_generated_tokens_total",
    "languagepipes_time_to_first_token_seconds_count",
    "languagepipes_time_between_tokens_seconds_count",
    "languagepipes_time_to_last_token_seconds_count",
)


def counts() -> dict[str, float]:
    return {name: REGISTRY.get_sample_value(name) or 0.0 for name in _COUNTED}


async def finish(bridge: EngineBridge, engine: Engine, request: SequenceRequest) -> int:
    """Generate to the end, the engine and the event loop taking turns; returns how many tokens came."""
    tokens = 0
    with bridge.open([request]) as exchange:
        while bridge.open_sequences:
            with torch.inference_mode():
                engine.step()
                engine.dispatch()
            tokens += len(await exchange.take())
    return tokens


def test_every_way_to_lose_the_ring_is_counted_from_zero(make_rig: MakeRig) -> None:
    """Prometheus sees no increase in a series that begins with its first count."""
    make_rig()

    for code in get_args(CloseCode):
        assert REGISTRY.get_sample_value("languagepipes_ring_epochs_total", {"reason": code}) is not None, code


def test_every_token_and_every_wait_is_counted_once(make_rig: MakeRig) -> None:
    bridge = EngineBridge()
    rig = make_rig()
    rig.engine._deliver = bridge.deliver
    bridge.attach(rig.engine)
    before = counts()
    request = SequenceRequest((3, 1, 4, 1, 5), 8, GREEDY, frozenset(), None)
    assert asyncio.run(finish(bridge, rig.engine, request)) == 8
    after = counts()
    assert [after[name] - before[name] for name in _COUNTED] == [5, 8, 1, 7, 1]


def test_an_answer_counts_as_complete_if_a_stop_string_ended_it_and_not_if_the_client_left(make_rig: MakeRig) -> None:
    bridge = EngineBridge()
    rig = make_rig()
    rig.engine._deliver = bridge.deliver
    bridge.attach(rig.engine)
    request = SequenceRequest((3, 1, 4, 1, 5), 8, GREEDY, frozenset(), None)

    async def begin(*, stopped: bool) -> None:
        with bridge.open([request]) as exchange:
            if stopped:
                exchange.cancel(0)

    before = counts()["languagepipes_time_to_last_token_seconds_count"]
    asyncio.run(begin(stopped=True))
    asyncio.run(begin(stopped=False))
    assert counts()["languagepipes_time_to_last_token_seconds_count"] == before + 1
