"""The role `end-model`: load its layers, join the ring, serve the OpenAI API until SIGTERM and until what was begun is
answered.

Two threads matter: the engine's, which does all torch work, and the API's event loop. They share two queues.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from languagepipes_api.member_settings import MemberSettings
from prometheus_client import REGISTRY

from languagepipes_node import health, member, process, termination
from languagepipes_node.health import MemberState
from languagepipes_node.wire.errors import WireError

if TYPE_CHECKING:
    from languagepipes_node.end_model.engine import Engine
    from languagepipes_node.end_model.openai.bridge import EngineBridge
    from languagepipes_node.end_model.openai.server import ApiServer

log = logging.getLogger(__name__)

# An API thread that holds the interpreter for the default 5 ms would delay a token by as much.
_SWITCH_INTERVAL_SECONDS = 0.0005
_DRAIN_POLL_SECONDS = 0.05
# How long a drain waits for a ring that is down. A stage that was lost meanwhile may come back; those of a pipe that
# was deleted do not, and its pods are not to hold their memory for all of `drain_seconds`.
_RING_LOST_SECONDS = 35.0


def run(settings: MemberSettings) -> int:
    """Returns 0 after SIGTERM, once open requests are answered or `drain_seconds` are over; a second signal ends the
    process at once. Returns 1 if this End Model can never serve; the reason is the last line on stderr.
    """
    process.end_on_signals()
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    state = MemberState("end-model")
    ready: list[Any] = []  # the engine, once it runs

    def readiness() -> tuple[bool, str]:
        if not ready or state.state != "ready":
            return False, state.message or state.state
        status = ready[0].status
        return status.ring_ready, status.ring_error

    try:
        server = health.serve(settings.telemetry_listen, state, ready=readiness)
        try:
            failure = _serve(settings, state, ready)
        finally:
            server.shutdown()
    except Exception as error:
        state.enter("failed", termination.sentence_of(error))
        termination.report("end-model", error)
        return 1
    if failure is not None:
        termination.report("end-model", failure)
        return 1
    return 0


def _serve(settings: MemberSettings, state: MemberState, ready: list[Any]) -> tuple[str, str] | None:
    """Until SIGTERM and the drain after it: None, or (code, sentence) of what ended it."""
    startup = member.prepare(settings, state)
    plan = startup.plan

    from languagepipes_node.end_model.text import SamplingDefaults, TextCodec, TextError

    try:
        text = TextCodec.load(startup.store.file)
        defaults = SamplingDefaults()
        if settings.generation_config == "auto":
            defaults = SamplingDefaults.read(startup.store.file)
    except TextError as error:
        raise member.SettingsError(str(error)) from error

    # Not before: a thread has been importing torch since the process started (process.import_meanwhile).
    state.enter("starting", "importing torch")
    from languagepipes_node.end_model.engine import Engine, EngineSettings
    from languagepipes_node.end_model.openai.app import create_app
    from languagepipes_node.end_model.openai.auth import ApiKeys
    from languagepipes_node.end_model.openai.bridge import EngineBridge
    from languagepipes_node.end_model.openai.server import ApiServer
    from languagepipes_node.end_model.vllm_metrics import VllmMetrics
    from languagepipes_node.model.buffers import TORCH_DTYPES
    from languagepipes_node.model.end import EndLayers
    from languagepipes_node.wire.end_model_communicator import EndModelCommunicator

    layers = EndLayers(
        startup.architecture,
        plan.end_model.local_layers,
        plan.end_model.tail_layers,
        dtype=TORCH_DTYPES[plan.dtype],
        device=member.torch_device(settings.device),
        block_tokens=plan.kv_block_tokens,
        blocks=plan.kv_blocks,
    )
    state.to_load(plan.end_model.weight_bytes)
    state.enter("loading", f"layers {plan.end_model.local_layers} and head")
    layers.load(startup.store, state.loaded, memory=startup.store)
    startup.store.close()

    communicator = EndModelCommunicator(
        settings.identity,
        plan,
        startup.tls,
        member.required(settings.ring_listen, "ring_listen"),
        member.required(settings.successor, "successor"),
        watchdog=state.watchdog,
    )
    bridge = EngineBridge(max_sequences=settings.max_concurrent_requests + settings.max_queued_requests)
    engine = Engine(
        layers,
        communicator,
        plan=plan,
        settings=EngineSettings(
            max_running=settings.max_concurrent_requests,
            max_queued=settings.max_queued_requests,
            shared_cores=settings.shared_cores,
            max_wait_seconds=settings.max_wait_seconds,
            scales_to_zero=settings.scales_to_zero,
            max_replays=settings.max_replays,
            prefix_cache=settings.prefix_cache,
            speculation=settings.speculative_decoding,
        ),
        deliver=bridge.deliver,
        watchdog=state.watchdog,
    )
    REGISTRY.register(VllmMetrics(served_name=settings.served_name or settings.pipe, block_tokens=plan.kv_block_tokens))
    app = create_app(
        engine=engine,
        bridge=bridge,
        text=text,
        embedding_rows=startup.architecture.vocabulary_size,
        served_name=settings.served_name or settings.pipe,
        max_context_length=plan.max_context_length,
        api_keys=ApiKeys(settings.api_keys_dir),
        system_fingerprint=plan.hash,
        tool_parser=settings.tool_parser,
        defaults=defaults,
        cors_allowed_origins=settings.cors_allowed_origins.split(",") if settings.cors_allowed_origins else [],
        takes_priorities=settings.scheduling_policy == "priority",
        max_stored_responses=settings.max_stored_responses,
        max_stored_response_bytes=settings.max_stored_response_bytes,
    )
    api = ApiServer(app, member.required(settings.api_listen, "api_listen"), watchdog=state.watchdog.another())

    def shown() -> dict[str, Any]:
        status = engine.status  # once: it is replaced while this runs
        return {
            "epoch": status.epoch,
            "ring_ready": status.ring_ready,
            "ring_error": status.ring_error,
            "recovering": status.recovering,
            "replays": status.replays,
            "running": status.running,
            "waiting": status.waiting,
        }

    state.extra = shown
    stopping = process.leave_on_signals()
    process.keep_out_of_collections()
    ready.append(engine)
    state.enter("ready", "serving")

    failures: list[tuple[str, str]] = []

    def run_engine() -> None:
        try:
            if (failure := drive(engine, bridge)) is not None:
                failures.append(failure)
        finally:
            stopping.set()

    def api_ended(error: BaseException | None) -> None:
        if not stopping.is_set():
            why = "" if error is None else f": {type(error).__name__}"
            failures.append(("ApiFailed", f"the API's thread ended{why}"))
            stopping.set()

    thread = threading.Thread(target=run_engine, name="engine")
    thread.start()
    api.start(on_end=api_ended)
    log.info("end-model ready, API on %s", api.address)
    process.wait_for_signal(stopping)
    state.enter("stopping", "shutting down")  # no longer ready
    if not failures:
        drain(bridge, api, until=stopping.since + settings.drain_seconds)
    api.stop()
    engine.stop()
    thread.join()
    state.watchdog.rest()
    communicator.close()
    return failures[0] if failures else None


def drain(bridge: EngineBridge, api: ApiServer, *, until: float, ring_lost_seconds: float = _RING_LOST_SECONDS) -> None:
    """Let answers end that were begun, and clients read them; new requests are refused meanwhile, on connections that
    are still accepted, so that they learn why. What is left at `until` (time.monotonic()), or after `ring_lost_seconds`
    without a ring, ends with an error.
    """
    bridge.stop_admission("the server is shutting down: ask again")
    log.info("shutting down: %d answers are to be completed", bridge.open_sequences)
    whole_at = time.monotonic()
    while (bridge.open_sequences or api.answering) and time.monotonic() < min(until, whole_at + ring_lost_seconds):
        if bridge.engine.status.ring_ready:
            whole_at = time.monotonic()
        time.sleep(_DRAIN_POLL_SECONDS)
    if left := bridge.open_sequences:
        log.warning("shutting down: %d answers were not complete in time", left)
        bridge.end_open("the server is shutting down, and this answer was not complete in time: ask again")


def drive(engine: Engine, bridge: EngineBridge) -> tuple[str, str] | None:
    """Run the engine until it is stopped: None, or (code, sentence) of what ended it. Open requests are answered by
    then.
    """
    failure = None
    try:
        engine.run_forever()
    except WireError as error:  # another End Model holds the replica
        failure = termination.code_of(error), str(error)
    except Exception as error:
        # Its message may quote text of a request: the type and the traceback are enough.
        failure = "EngineFailed", f"the engine failed: {type(error).__name__}"
        log.error("%s in\n%s", failure[1], "".join(traceback.format_tb(error.__traceback__)))
    finally:
        bridge.engine_gone("the server is shutting down" if failure is None else failure[1])
    return failure
