"""What it costs to read a tensor's bytes from the weights store into place: http.client against httpx2.

    python -m benchmarks.store_transfer [--mebibytes 64] [--pairs 7]

One HTTPS server on loopback (mutual TLS 1.3) serves the same bytes, and the clients take turns. The
figure is the reading process's CPU time, which other work on the machine does not change much, and the wall time.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
from languagepipes_api.names import TLS_CA_FILE, TLS_CERTIFICATE_FILE, TLS_KEY_FILE, Identity
from languagepipes_operator.certificates.authority import issue, new_ca, write_tls_dir

MIB = 2**20


def serve(folder: Path, size: int, port: multiprocessing.Queue[int]) -> None:
    """Answer every GET with `size` bytes, until the process is ended."""
    content = memoryview(bytes(size))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            for begin in range(0, size, MIB):
                self.wfile.write(content[begin : begin + MIB])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(folder / TLS_CA_FILE)
    context.load_cert_chain(folder / TLS_CERTIFICATE_FILE, folder / TLS_KEY_FILE)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    port.put(server.server_port)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    size = options.mebibytes * MIB
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = new_ca("default", "pipe")
        write_tls_dir(folder, authority, issue(authority, Identity("default", "pipe", -1, "store")))
        ports: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(folder, size, ports), daemon=True)
        server.start()
        port = ports.get(timeout=30)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(folder / TLS_CA_FILE)
        context.load_cert_chain(folder / TLS_CERTIFICATE_FILE, folder / TLS_KEY_FILE)
        target = memoryview(bytearray(size))

        def by_http_client() -> None:
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
            connection.request("GET", "/")
            response, filled = connection.getresponse(), 0
            while filled < size:
                filled += response.readinto(target[filled:])
            connection.close()

        def by_httpx2() -> None:
            with (
                httpx2.Client(verify=context, trust_env=False) as client,
                client.stream("GET", f"https://127.0.0.1:{port}/") as response,
            ):
                filled = 0
                for piece in response.iter_raw():
                    target[filled : filled + len(piece)] = piece
                    filled += len(piece)

        ways: dict[str, Callable[[], None]] = {"http.client, readinto": by_http_client, "httpx2, iter_raw": by_httpx2}
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(options.pairs + 1):
            for way, read in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                read()
                if number:  # the first is a warm-up
                    times[way].append((time.process_time() - cpu, time.perf_counter() - wall))
        server.terminate()
    print(f"{options.mebibytes} MiB over mutual TLS on loopback, medians of {options.pairs} pairs\n")
    print("| client | CPU | wall | CPU, ratio |\n| --- | --- | --- | --- |")
    first = statistics.median(cpu for cpu, _ in times["http.client, readinto"])
    for way, found in times.items():
        cpu, wall = statistics.median(cpu for cpu, _ in found), statistics.median(wall for _, wall in found)
        print(f"| {way} | {cpu * 1e3:.0f} ms | {wall * 1e3:.0f} ms | {cpu / first:.2f} |")


if __name__ == "__main__":
    main()
