"""The role `stage`: load one layer range, join the ring, run frames until SIGTERM and until the ring lets it go."""

from __future__ import annotations

import logging
from typing import Any

from languagepipes_api.member_settings import MemberSettings

from languagepipes_node import health, member, metrics, process, termination
from languagepipes_node.health import MemberState

log = logging.getLogger(__name__)

# How long after SIGTERM a stage serves an open ring. At an eviction the stage's replacement is made at once, beside it:
# what this process still serves meanwhile need not wait for the other to load. Two seconds below what its pod gets
# (terminationGracePeriodSeconds), so that the neighbours learn why it goes before SIGKILL.
#
# /readyz stays as it is. It does serve; and it takes no traffic away: the name of a stage is headless with
# publishNotReadyAddresses, so it leads to this pod until the pod is gone, ready or not. What sends the End Model to the
# replacement behind the same name is that this one listens no more (`StageLoop.drain`): a dial tries every address.
LEAVE_SECONDS = 18.0


def run(settings: MemberSettings) -> int:
    """Returns 0 after SIGTERM, once the ring is closed or LEAVE_SECONDS are over; a second signal ends the process at
    once. Returns 1 if this stage can never serve; the reason is the last line on stderr.
    """
    process.end_on_signals()
    state = MemberState("stage")
    try:
        server = health.serve(settings.telemetry_listen, state)
        try:
            _serve(settings, state)
        finally:
            server.shutdown()
    except Exception as error:
        state.enter("failed", termination.sentence_of(error))
        termination.report(f"stage {settings.stage}", error)
        return 1
    return 0


def _serve(settings: MemberSettings, state: MemberState) -> None:
    startup = member.prepare(settings, state)
    plan = startup.plan
    if not 1 <= settings.stage <= len(plan.stages):
        raise member.SettingsError(
            f"LANGUAGEPIPES_STAGE: {settings.stage} is outside the plan's stages 1 to {len(plan.stages)}"
        )
    assignment = plan.stages[settings.stage - 1]

    # Not before: a thread has been importing torch since the process started (process.import_meanwhile).
    state.enter("starting", "importing torch")
    from languagepipes_node.model.buffers import TORCH_DTYPES
    from languagepipes_node.model.stack import LayerStack
    from languagepipes_node.stage.loop import StageLoop
    from languagepipes_node.wire.stage_communicator import StageCommunicator

    dtype = TORCH_DTYPES[plan.dtype]
    stack = LayerStack(
        startup.architecture,
        assignment.layers,
        dtype=dtype,
        device=member.torch_device(settings.device),
        block_tokens=plan.kv_block_tokens,
        blocks=plan.kv_blocks,
    )
    state.to_load(assignment.weight_bytes)
    state.enter("loading", f"layers {assignment.layers}")
    stack.load(startup.store, state.loaded, memory=startup.store)
    startup.store.close()
    metrics.KV_BLOCKS_TOTAL.set(plan.kv_blocks)

    communicator = StageCommunicator(
        settings.identity,
        plan,
        startup.tls,
        member.required(settings.ring_listen, "ring_listen"),
        member.required(settings.successor, "successor"),
        watchdog=state.watchdog,
    )

    def ring() -> dict[str, Any]:
        now = communicator.state
        return {"epoch": now.epoch.counter if now.epoch else 0, "ring_error": now.reason}

    state.extra = ring
    leaving = process.leave_on_signals()
    communicator.start()
    state.enter("ready", f"layers {assignment.layers}")
    log.info("stage %s (%s) ready with layers %s", settings.stage, assignment.name, assignment.layers)
    last = settings.stage == len(plan.stages)
    loop = StageLoop(
        stack,
        communicator,
        hidden_size=plan.hidden_size,
        dtype=dtype,
        rows_only=last and len(plan.end_model.tail_layers) <= 0,
        watchdog=state.watchdog,
    )
    try:
        loop.run(leaving)
        if communicator.state.epoch is not None:
            state.enter("ready", f"leaves when the ring is closed, or in {LEAVE_SECONDS:.0f} s")
            log.info("stage %s leaves when the ring is closed, or in %.0f s", settings.stage, LEAVE_SECONDS)
        loop.drain(leaving.since + LEAVE_SECONDS)
    finally:
        state.watchdog.rest()
        communicator.close()
