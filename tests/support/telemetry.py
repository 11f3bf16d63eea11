"""A member's telemetry port that answers what a test wants."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from languagepipes_api.names import TELEMETRY_PORT


@contextmanager
def member_that_says(status: Mapping[str, object]) -> Iterator[str]:
    """Its address. status: as it is when the member is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(dict(status)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    host = f"127.{random.randint(20, 30)}.{random.randint(0, 254)}.{random.randint(2, 254)}"
    server = ThreadingHTTPServer((host, TELEMETRY_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
