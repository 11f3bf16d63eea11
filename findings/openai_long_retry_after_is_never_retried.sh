#!/usr/bin/env bash
# One second more in Retry-After, and the openai client does not retry at all, whatever max_retries says.
#
# Package    openai 3.57.0.
# Behaviour  A 503 or 429 with Retry-After up to 120 is retried after that time, max_retries times. With 121 or more
#            the first answer is raised at once. Nothing but a debug line tells. The header x-should-retry: true, which
#            otherwise decides, does not help.
# Seen       Retry-After 120: three requests, the waits 120 s and 120 s. Retry-After 121: one request, no wait.
# Source     _should_retry in _base_client.py answers no for a Retry-After above MAX_RETRY_AFTER_DELAY (two minutes)
#            before it looks at x-should-retry and the status. The README says that 429 and all from 500 are
#            retried by default, names no such limit, and recommends a large max_retries for a larger budget.
# Effect     A server that starts slowly and says so (three minutes to load a model) gets fewer retries than one that
#            says one second.
# Instead    Servers: Retry-After of at most 120. Clients that may wait longer: retry outside the client.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check openai==3.57.0
env -u OPENAI_ORG_ID -u OPENAI_PROJECT_ID "$folder/venv/bin/python" - <<'PYTHON'
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import InternalServerError, OpenAI

requests = []


class Starting(BaseHTTPRequestHandler):
    """Always 503; the path holds Retry-After."""

    def do_GET(self) -> None:
        requests.append(self.path)
        self.send_response(503)
        self.send_header("Retry-After", self.path.split("/")[1])
        self.send_header("x-should-retry", "true")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Starting)
threading.Thread(target=server.serve_forever, daemon=True).start()
waits = []
time.sleep = waits.append  # the client waits with time.sleep; note the time instead


def try_with(retry_after: int) -> tuple[int, list[float]]:
    """How many requests were sent, and the waits between them, in seconds."""
    requests.clear()
    waits.clear()
    client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/{retry_after}", api_key="none", max_retries=2)
    try:
        client.models.list()
    except InternalServerError as error:
        assert error.status_code == 503
    print(f"Retry-After {retry_after}: {len(requests)} requests, waits {waits}")
    return len(requests), list(waits)


assert try_with(1) == (3, [1, 1])
assert try_with(120) == (3, [120, 120]), "changed: another limit, or other waits"
assert try_with(121) == (1, []), "changed: a Retry-After above two minutes is retried"
print("as found: above 120 seconds there is no retry")
PYTHON
