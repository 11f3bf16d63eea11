"""A real server on loopback in front of an engine that answers what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from languagepipes_node.end_model.openai.app import create_app
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.bridge import EngineBridge
from languagepipes_node.end_model.openai.server import ApiServer
from languagepipes_node.end_model.text import TextCodec
from support import chat_templates
from support.scripted_engine import Script, ScriptedEngine, Served, saying, smollm2_file
from support.tiny_tokenizer import model_files, train_tokenizer
from support.tool_model import codec_of


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return TextCodec.load(model_files(train_tokenizer()).__getitem__)


@pytest.fixture(scope="session")
def smollm2() -> TextCodec:
    return TextCodec.load(smollm2_file)


@pytest.fixture
def serve(codec: TextCodec) -> Iterator[Callable[..., Served]]:
    """Starts servers: serve(script, pace_seconds=…, api_keys=…, …)."""
    servers: list[Served] = []

    def start(
        script: Script | str = "Hello world, how are you?",
        *,
        codec: TextCodec = codec,
        pace_seconds: float = 0.0,
        api_keys: ApiKeys | None = None,
        max_sequences: int | None = None,
        max_context_length: int = 512,
        embedding_rows: int | None = None,
        logprob: Callable[[int], float] = lambda request_id: -0.25,
        **options: object,
    ) -> Served:
        bridge = EngineBridge(max_sequences=max_sequences)
        chosen = saying(codec, script) if isinstance(script, str) else script
        engine = ScriptedEngine(bridge.deliver, chosen, pace_seconds, logprob)
        app = create_app(
            engine=engine,
            bridge=bridge,
            text=codec,
            embedding_rows=embedding_rows or codec.vocabulary_size,
            served_name="tiny",
            max_context_length=max_context_length,
            api_keys=api_keys or ApiKeys(None),
            system_fingerprint="fp_test",
            **options,
        )
        server = ApiServer(app, "127.0.0.1:0", close_seconds=1)
        server.start()
        servers.append(served := Served(codec, engine, bridge, server))
        return served

    yield start
    for served in servers:
        for client in served.clients:
            client.close()
        served.server.stop()
        served.engine.stop()


@pytest.fixture
def hermes(serve: Callable[..., Served]) -> Callable[..., Served]:
    """Starts servers of a model that calls tools, and answers with a text: hermes(text, …)."""
    codec = codec_of(chat_templates.HERMES)
    return lambda text="Hello", **options: serve(saying(codec, text), codec=codec, max_context_length=4096, **options)


@pytest.fixture
def hermes_server(hermes: Callable[..., Served]) -> Served:
    """One of them, for requests that are to be refused."""
    return hermes("x")
