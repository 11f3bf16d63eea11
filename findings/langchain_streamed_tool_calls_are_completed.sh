#!/usr/bin/env bash
# LangChain completes the arguments of a tool call that was cut off at max_tokens, if streamed, and counts it as valid.
#
# Package    langchain-openai 1.7.4 with langchain-core 1.8.3.
# Behaviour  A server's answer ends with finish_reason "length" in the middle of a tool call's arguments. Asked without
#            streaming, ChatOpenAI puts the call into invalid_tool_calls, with the error of the JSON parser. Asked with
#            streaming=True (or stream(), whose chunks are added up), it closes the open string and the open object,
#            and puts the call into tool_calls, where there is nothing invalid any more.
# Seen       the server sends {"path": "reports/2025 and nothing after it; tool_calls then holds
#            {"path": "reports/2025"}.
# Source     AIMessageChunk of langchain-core parses the pieces of arguments with parse_partial_json, to show what is there
#            so far. The message made of all pieces keeps the result, whatever finish_reason says.
# Effect     An agent that streams runs its tool with arguments that the model never finished: a path, a command, a
#            query that stops halfway, a list without its last items. The same agent without streaming does not.
# Instead    Before running tools, look at response_metadata["finish_reason"]: "length" means that the last call is not
#            whole. Or parse the arguments of tool_call_chunks with json.loads once the stream has ended.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check langchain-openai==1.7.4 langchain-core==1.8.3
"$folder/venv/bin/python" - <<'PYTHON'
import functools
import json
import operator
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from langchain_openai import ChatOpenAI

WHOLE, CUT = '{"path": "reports/2025/draft.txt"}', '{"path": "reports/2025'
FUNCTION = {"name": "delete", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}
TOOL = {"type": "function", "function": FUNCTION}
state = {"arguments": WHOLE}


class OpenAIServer(BaseHTTPRequestHandler):
    """Answers every chat with one call of the tool: whole, or cut off by the limit of tokens."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "delete", "arguments": state["arguments"]}}
        reason = "tool_calls" if state["arguments"] == WHOLE else "length"
        head = {"id": "c", "created": 1, "model": "m"}
        if request.get("stream"):
            deltas = [({"role": "assistant", "content": None}, None), ({"tool_calls": [call]}, None), ({}, reason)]
            chunks = [{"index": 0, "delta": delta, "finish_reason": end} for delta, end in deltas]
            events = [json.dumps({**head, "object": "chat.completion.chunk", "choices": [chunk]}) for chunk in chunks]
            kind, body = "text/event-stream", "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [call]}, "finish_reason": reason}
            kind, body = "application/json", json.dumps({**head, "object": "chat.completion", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), OpenAIServer)
threading.Thread(target=server.serve_forever, daemon=True).start()


def model(**options: object):
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return ChatOpenAI(model="m", base_url=url, api_key="none", max_retries=0, **options).bind_tools([TOOL])


def calls(message) -> tuple[list, list, str]:
    valid = [call["args"] for call in message.tool_calls]
    invalid = [call["args"] for call in message.invalid_tool_calls]
    print(f"{type(message).__name__:14} valid {valid} invalid {invalid}", message.response_metadata["finish_reason"])
    return valid, invalid, message.response_metadata["finish_reason"]


state["arguments"] = WHOLE
whole = ([{"path": "reports/2025/draft.txt"}], [], "tool_calls")
assert calls(model().invoke("hi")) == whole and calls(model(streaming=True).invoke("hi")) == whole

state["arguments"] = CUT
assert calls(model().invoke("hi")) == ([], [CUT], "length"), "a cut call is valid even without streaming"
completed = ([{"path": "reports/2025"}], [], "length")
assert calls(model(streaming=True).invoke("hi")) == completed, "changed: a streamed call that was cut is not completed"
added_up = functools.reduce(operator.add, model().stream("hi"))
assert calls(added_up) == completed, "changed: chunks that are added up do not complete a cut call"
print("as found: streamed, a call that was cut off is a valid one with shorter arguments")
PYTHON
