"""SmolLM2 behind the real API: its own weights and tokenizer, the real engine, a ring of one stage in this process."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import openai
import torch
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.openai.app import create_app
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.bridge import EngineBridge
from languagepipes_node.end_model.openai.server import ApiServer
from languagepipes_node.end_model.text import TextCodec
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.directory import SafetensorsDirectory

from support.loopback_ring import LoopbackRing
from support.scripted_engine import CONVERTED, smollm2_file
from support.thread_ring import CPU, plan_of

MAX_SEQUENCES = 32


@dataclass
class SmolLM2Server:
    codec: TextCodec
    ring: LoopbackRing
    engine: Engine
    server: ApiServer

    @property
    def url(self) -> str:
        return f"http://{self.server.address}"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)


@contextlib.contextmanager
def serving_smollm2(template: str | None = None) -> Iterator[SmolLM2Server]:
    """template: a chat template in place of its own."""

    def file(name: str) -> bytes:
        raw = smollm2_file(name)
        if name != "tokenizer_config.json" or template is None:
            return raw
        return json.dumps({**json.loads(raw), "chat_template": template}).encode()

    codec = TextCodec.load(file)
    source = SafetensorsDirectory(CONVERTED)
    architecture = Architecture.from_config(json.loads(source.file("config.json")))
    plan = plan_of(architecture, [(2, architecture.layer_count)], dtype="float32", block_tokens=32, blocks=256)
    options = {"dtype": torch.float32, "device": CPU, "block_tokens": plan.kv_block_tokens, "blocks": plan.kv_blocks}
    stack = LayerStack(architecture, plan.stages[0].layers, **options)
    stack.load(source, lambda total: None)
    layers = EndLayers(architecture, plan.end_model.local_layers, plan.end_model.tail_layers, **options)
    layers.load(source, lambda total: None)
    ring = LoopbackRing([stack], hidden_size=plan.hidden_size, dtype=torch.float32)
    bridge = EngineBridge(max_sequences=4 * MAX_SEQUENCES)
    settings = EngineSettings(max_running=MAX_SEQUENCES, shared_cores=True, reconnect_first_seconds=0.01)
    engine = Engine(layers, ring, plan=plan, settings=settings, deliver=bridge.deliver)
    app = create_app(
        engine=engine,
        bridge=bridge,
        text=codec,
        embedding_rows=architecture.vocabulary_size,
        served_name="smollm2",
        max_context_length=plan.max_context_length,
        api_keys=ApiKeys(None),
    )
    server = ApiServer(app, "127.0.0.1:0", close_seconds=1)
    thread = threading.Thread(target=engine.run_forever, name="engine")
    thread.start()
    server.start()
    try:
        yield SmolLM2Server(codec, ring, engine, server)
    finally:
        server.stop()
        engine.stop()
        thread.join(timeout=30)
        ring.close()
