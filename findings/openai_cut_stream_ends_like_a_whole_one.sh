#!/usr/bin/env bash
# The openai client takes a stream that stops in the middle for one that is complete, and does not see `event: error`.
#
# Package    openai 3.57.0, Chat Completions.
# Behaviour  A stream that ends without finish_reason and without `data: [DONE]` raises nothing: iteration ends as after
#            a complete one, and get_final_completion() of the stream helper returns a completion whose finish_reason is
#            None, although its type has no None. A last event without its blank line is dropped in silence. An event
#            named error is no error either: only data with a member "error" is, whatever the event's name.
# Seen       "a" with finish_reason None for the cut streams; "ab" for a stream with `event: error` in its middle.
# Source     __stream__ in _streaming.py looks for [DONE] to stop, and not for its absence; it looks at data["error"]
#            and, for Chat Completions, not at the event's name. The README says that connection errors and time-outs
#            of a stream raise; HTTP sees neither where a proxy or a server ends a body in good order.
# Effect     Half an answer is stored as a whole one where a server process stops and its proxy closes the body.
# Instead    Clients: take a stream without finish_reason for a failed one. Servers: report an error as
#            `data: {"error": {"message": …}}`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check openai==3.57.0
env -u OPENAI_ORG_ID -u OPENAI_PROJECT_ID "$folder/venv/bin/python" - <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import APIError, OpenAI


def chunk(text: str, finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n"


streams = {
    "whole": chunk("a") + chunk("b", "stop") + "data: [DONE]\n\n",
    "cut between events": chunk("a"),
    "cut inside an event": chunk("a") + chunk("b", "stop")[:40],
    "blank line missing": chunk("a") + chunk("b", "stop").rstrip("\n") + "\n",
    "event named error": chunk("a") + 'event: error\ndata: {"message": "out of memory"}\n\n' + chunk("b"),
    "data with error": chunk("a") + 'data: {"error": {"message": "out of memory"}}\n\n' + chunk("b"),
}


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = list(streams.values())[int(self.path.split("/")[1])].encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))  # so that HTTP itself sees a complete body
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def answer(name: str) -> tuple[str | None, str | None]:
    """The text and the finish_reason that the stream helper gives, or ("APIError", its message)."""
    url = f"http://127.0.0.1:{server.server_port}/{list(streams).index(name)}"
    messages = [{"role": "user", "content": "?"}]
    client = OpenAI(base_url=url, api_key="none", max_retries=0)
    try:
        plain = [part for part in client.chat.completions.create(model="m", messages=messages, stream=True)]
        with client.chat.completions.stream(model="m", messages=messages) as stream:
            choice = stream.get_final_completion().choices[0]
            found = choice.message.content, choice.finish_reason
        assert "".join(part.choices[0].delta.content for part in plain if part.choices) == found[0]
    except APIError as error:
        found = "APIError", error.message
    print(f"{name:20} {found}")
    return found


assert answer("whole") == ("ab", "stop")
assert answer("data with error") == ("APIError", "out of memory")
assert answer("cut between events") == ("a", None), "changed: a stream without an end is noticed"
assert answer("cut inside an event") == ("a", None), "changed: half an event is noticed"
assert answer("blank line missing") == ("a", None), "changed: the last event counts without its blank line"
assert answer("event named error") == ("ab", None), "changed: an event named error is noticed"
print("as found: nothing is raised for a stream that was cut, nor for an event named error")
PYTHON
