"""How much of a core `languagepipes bench` needs, in front of a server that only streams.

    python -m benchmarks.bench_client                            # a token every 20 ms to each of 64, 256, 1024 streams
    python -m benchmarks.bench_client --gap-ms 0 --streams 16    # as fast as the client reads

The server is a process of its own without a model or HTTP library: each chunk is one write of the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
from multiprocessing.connection import Connection

from languagepipes_operator.cli.main import main as languagepipes

_CHUNK = json.dumps(
    {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "played",
        "choices": [{"index": 0, "delta": {"content": " hello"}, "logprobs": None, "finish_reason": None}],
        "usage": None,
    }
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _piece(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve(ready: Connection, gap_seconds: float) -> None:
    chunk = _piece(_CHUNK)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
            length = next(int(value) for name, _, value in lines if name == b"content-length")
            tokens = json.loads(await reader.readexactly(length))["max_tokens"]
            writer.write(_HEAD)
            for _ in range(tokens):
                writer.write(chunk)
                await (asyncio.sleep(gap_seconds) if gap_seconds else writer.drain())
            usage = {"choices": [], "usage": {"prompt_tokens": length // 5, "completion_tokens": tokens}}
            writer.write(_piece(json.dumps(usage)) + _piece("[DONE]") + b"0\r\n\r\n")
            await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2048)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _run_server(ready: Connection, gap_seconds: float) -> None:
    asyncio.run(_serve(ready, gap_seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--streams", default="64,256,1024")
    parser.add_argument("--duration", default="10s")
    arguments = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_run_server, args=(there, arguments.gap_ms / 1000), daemon=True)
    server.start()
    try:
        return languagepipes(
            [
                *("bench", f"http://127.0.0.1:{here.recv()}", "--model", "played", "--streams", arguments.streams),
                *("--duration", arguments.duration, "--output-tokens", "128"),
            ]
        )
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    sys.exit(main())
