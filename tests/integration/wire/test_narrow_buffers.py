"""No cycle of blocked sends: frames far larger than the socket buffers, and more of them than members."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from languagepipes_node.wire.link import Timing
from languagepipes_node.wire.tls_transport import TlsTransport
from support.waiting import eventually
from support.wire_ring import FAST, Pki, build_ring, identity, make_plan, tokens


def test_eight_mebibyte_frames_pass_buffers_of_4_kib_twice_as_many_as_there_are_members(
    pki: Pki, stack: ExitStack
) -> None:
    members, frames = 3, 6
    # With a tail layer all rows return, so that every hop of the ring is as full as the others.
    plan = make_plan(
        stages=members - 1, hidden_size=1024, frame_tokens=2048, max_context=2048, kv_blocks=128,
        frames_in_flight=frames, tail=True,
    )  # fmt: skip
    ring = build_ring(
        plan,
        lambda index: TlsTransport(pki.files(identity(index)), socket_buffer_bytes=4096),
        stack,
        timing=Timing(heartbeat_seconds=FAST.heartbeat_seconds),
        compute=lambda hidden: hidden,
    )
    ring.end.connect()
    hidden = np.zeros((2048, 1024), dtype=np.float32)  # 8 MiB
    for step in range(frames):
        hidden[0, 0] = step
        ring.end.send(step, tokens(2048), hidden, 2048)
    for step in range(frames):
        returned = ring.end.receive(20.0)
        assert returned is not None
        assert (returned.step, returned.rows) == (step, 2048)
        assert np.frombuffer(returned.hidden, dtype=np.float32, count=1)[0] == step
        returned.release()
    # A stage lets go of its slot once `forward` has returned, which may be after the frame was received.
    eventually(lambda: all(loop.communicator._slots.free == frames + 1 for loop in ring.loops))
