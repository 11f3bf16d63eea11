"""What a stage's loop tells of the frames that it ran."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import numpy as np
import torch
from languagepipes_node.model.batch import Batch
from languagepipes_node.stage.loop import StageLoop
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.stage_communicator import Inbound, StageCommunicator
from prometheus_client import REGISTRY
from support.waiting import eventually
from support.wire_ring import FAST, TransportMaker, free_addresses, identity, make_plan, tokens


class NoLayers:
    device = torch.device("cpu")

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden


class BusyMember(StageCommunicator):
    """The next frame is in the slot as soon as that is free."""

    def forward(self, inbound: Inbound, *rest: object) -> None:
        super().forward(inbound, *rest)  # type: ignore[arg-type]
        inbound.slot.bytes[:] = 0xFF


def test_the_blocks_that_a_stage_tells_are_those_of_its_frame_and_not_of_the_next(
    transports: TransportMaker, stack: ExitStack
) -> None:
    plan = make_plan(stages=1)
    addresses = free_addresses(transports(0), 2)
    end = EndModelCommunicator(identity(0), plan, None, *addresses, timing=FAST, transport=transports(0))
    stack.callback(end.close)
    communicator = BusyMember(identity(1), plan, None, addresses[1], addresses[0], timing=FAST, transport=transports(1))
    stopping = threading.Event()
    loop = StageLoop(NoLayers(), communicator, hidden_size=plan.hidden_size, dtype=torch.float32, rows_only=True)  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run, args=(stopping,))
    communicator.start()
    thread.start()
    stack.callback(communicator.close)
    stack.callback(thread.join)
    stack.callback(stopping.set)
    end.connect()
    end.send(1, tokens(40, wanted=(39,)), np.zeros((40, plan.hidden_size), np.float32), 40)
    returned = end.receive(2.0)
    assert returned is not None
    returned.release()
    eventually(lambda: REGISTRY.get_sample_value("languagepipes_kv_blocks_used") == 3)
