"""What the HTTP layer costs by itself: the real server in front of an engine that only hands out tokens.

    python -m benchmarks.api_layer [--before FOLDER]

Sixteen streams, one token each a step; the figure is the server's CPU time a token, the scripted engine's included,
which is the same for all. Then the time to the first byte of a short answer that is not streamed. The ways of streaming
take turns, so that what else the machine does falls on all of them. `--before`: a folder that holds another
`languagepipes_node`, to measure beside this one's.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
STREAMS, TOKENS, PACE_SECONDS = 16, 1500, 0.002
ROUNDS, SHORT_REQUESTS = 7, 200
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def serve(way: str) -> None:
    """The server's process: prints its address and runs until it is ended."""
    sys.path.insert(0, str(ROOT / "tests"))
    from languagepipes_node.end_model.openai.app import create_app
    from languagepipes_node.end_model.openai.auth import ApiKeys
    from languagepipes_node.end_model.openai.bridge import EngineBridge
    from languagepipes_node.end_model.openai.server import ApiServer
    from languagepipes_node.end_model.text import TextCodec
    from support.scripted_engine import ScriptedEngine, forever
    from support.tiny_tokenizer import model_files, train_tokenizer

    if way == "StreamingResponse":
        use_streaming_response()
    codec = TextCodec.load(model_files(train_tokenizer()).__getitem__)
    bridge = EngineBridge()
    engine = ScriptedEngine(bridge.deliver, forever(codec), PACE_SECONDS)
    app = create_app(
        engine=engine,
        bridge=bridge,
        text=codec,
        embedding_rows=codec.vocabulary_size,
        served_name="tiny",
        max_context_length=100_000,
        api_keys=ApiKeys(None),
    )
    server = ApiServer(app, "127.0.0.1:0")
    print(server.address, flush=True)
    server.run()


def use_streaming_response() -> None:
    """Answer streams by Starlette's StreamingResponse over a generator instead of `EventStream`."""
    from languagepipes_node.end_model.openai import chat, generation
    from languagepipes_node.end_model.requests import Failure
    from starlette.responses import StreamingResponse
    from starlette.types import Receive, Scope, Send

    async def events(service: Any, planned: Any, format: Any, exchange: Any, answers: Any) -> AsyncIterator[bytes]:
        opened, still_open = [False] * len(answers), len(answers)
        stall = generation._StallGuard()
        while still_open:
            parts: list[bytes] = []
            for index, output in await exchange.take():
                if answers[index].finish is not None or isinstance(output, Failure):
                    continue
                if not opened[index]:
                    opened[index] = True
                    parts.append(format.opening(index))
                piece = answers[index].push(output)
                parts.append(format.event(index, piece))
                if piece.finish is not None:
                    exchange.cancel(index)
                    still_open -= 1
            if not still_open:
                parts.append(b"data: [DONE]\n\n")
            with stall:
                yield b"".join(parts)
        stall.close()

    class Streamed(StreamingResponse):
        def __init__(self, service: Any, planned: Any, format: Any) -> None:
            self._parts = (service, planned, format)
            super().__init__((), media_type="text/event-stream")

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            service, planned, format = self._parts
            answers = [generation.Answer(service.text, one.prompt, planned.stops) for one in planned.sequences]
            with service.bridge.open(planned.sequences, planned.seats) as exchange:
                self.body_iterator = events(service, planned, format, exchange, answers)
                await super().__call__(scope, receive, send)

    chat.EventStream = Streamed  # type: ignore[misc, assignment]


class Server:
    def __init__(self, way: str, path: str | None) -> None:
        environment = dict(os.environ, PYTHONPATH=path) if path else dict(os.environ)
        command = [sys.executable, "-m", "benchmarks.api_layer", "--serve", way]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        host, _, port = self.process.stdout.readline().strip().rpartition(":")
        self.host, self.port = host, int(port)
        self.us_per_token: list[float] = []
        self.first_byte_ms: list[float] = []

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    async def _stream(self) -> int:
        body = json.dumps({**CHAT, "stream": True, "max_tokens": TOKENS, "ignore_eos": True}).encode()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        received = await reader.read()
        writer.close()
        assert b"data: [DONE]" in received, received[:300]
        return received.count(b'"content":') - 1

    async def _streams(self) -> int:
        return sum(await asyncio.gather(*(self._stream() for _ in range(STREAMS))))

    def measure_streams(self) -> None:
        before = self.cpu_seconds()
        asyncio.run(self._streams())
        self.us_per_token.append((self.cpu_seconds() - before) / (STREAMS * TOKENS) * 1e6)

    def measure_first_byte(self) -> None:
        body = json.dumps({**CHAT, "max_tokens": 1})
        connection = http.client.HTTPConnection(self.host, self.port)
        for _ in range(SHORT_REQUESTS):
            time.sleep(2 * PACE_SECONDS)  # the engine is between two steps no more
            started = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            self.first_byte_ms.append((time.perf_counter() - started) * 1e3)
            response.read()
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", metavar="FOLDER")
    parser.add_argument("--serve", metavar="WAY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    ways: dict[str, str | None] = {"StreamingResponse": None, "EventStream (plain ASGI)": None}
    if arguments.before:
        ways["before"] = arguments.before
    servers = {way: Server(way, path) for way, path in ways.items()}
    try:
        for number in range(ROUNDS + 1):
            for server in servers.values():
                server.measure_streams()
                server.measure_first_byte()
                if number == 0:  # warming up
                    server.us_per_token.clear()
                    server.first_byte_ms.clear()
    finally:
        for server in servers.values():
            server.process.terminate()
    print(f"{STREAMS} streams x {TOKENS} tokens, a step every {PACE_SECONDS * 1e3:g} ms, medians of {ROUNDS} rounds\n")
    print("| way | CPU a token | tokens/s a core | short answer: first byte, median | 99 % |")
    print("| --- | --- | --- | --- | --- |")
    for way, server in servers.items():
        token, times = statistics.median(server.us_per_token), sorted(server.first_byte_ms)
        print(
            f"| {way} | {token:.1f} µs | {1e6 / token:,.0f} | {statistics.median(times):.2f} ms "
            f"| {times[len(times) * 99 // 100]:.2f} ms |"
        )


if __name__ == "__main__":
    main()
