#!/usr/bin/env bash
# The openai package sends what its own `parse` added to a chat's message, as fields that the API does not have.
#
# Package    openai 3.57.0 (PyPI), Python 3.11.
# Behaviour  client.chat.completions.parse returns a message with two fields more than the API's: `parsed`, and
#            `parsed_arguments` in the function of each tool call. When that message is put into the `messages` of the next
#            request, as the examples of tool use do with the message of `create`, both are in the request's body. The
#            items of client.responses.parse, which have the same two fields, are sent without them.
# Seen       messages[0] of the second request has tool_calls[0].function.parsed_arguments {"city": "Paris"}, or after an
#            answer by response_format, parsed {"city": "Paris"}; input[0] of the second request to /responses has no
#            parsed_arguments. The message of `create` is sent as it came. (In the second case
#            pydantic prints a serializer warning as well.)
# Source     in openai/_utils/_transform.py a model is dumped without what its class names in __api_exclude__. The parsed
#            classes of responses have such a list, ParsedChatCompletionMessage and ParsedFunction have none.
# Effect     A server that refuses unknown fields answers 400 to the second step of each agent that uses `parse`. Others
#            read the arguments twice, in two forms.
# Instead    On the client: append {"role": "assistant", "content": m.content, "tool_calls": [...]} made by hand, or
#            m.model_dump(exclude={...}). On the server: accept the two fields, and read neither.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
cat >"$folder/finding.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
from pydantic import BaseModel

ARGUMENTS = '{"city": "Paris"}'
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
CHAT = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{
        "index": 0, "finish_reason": "tool_calls",
        "message": {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
    }],
}
ITEM = {
    "id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": ARGUMENTS,
    "status": "completed",
}
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m", "output": [ITEM],
    "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
}
bodies = []


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = json.dumps(RESPONSE if self.path.endswith("/responses") else CHAT).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass


class GetWeather(BaseModel):
    city: str


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}


def sent_back(ask):
    """The assistant's message as it stands in the second request."""
    message = ask(messages=[{"role": "user", "content": "Weather in Paris?"}]).choices[0].message
    ask(messages=[message, result])
    return bodies[-1]["messages"][0]


tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
created = sent_back(lambda **more: client.chat.completions.create(model="m", tools=tools, **more))
print("create sends back", json.dumps(created["tool_calls"][0]["function"]))
assert created["tool_calls"] == [CALL], "changed: the message of `create` is not sent as it came"

parsed = sent_back(lambda **more: client.chat.completions.parse(model="m", tools=tools, **more))
print("parse sends back ", json.dumps(parsed["tool_calls"][0]["function"]))
assert parsed["tool_calls"][0]["function"].get("parsed_arguments") == {"city": "Paris"}, "changed: it is left out"

message = CHAT["choices"][0]["message"]
del message["tool_calls"]
message["content"], CHAT["choices"][0]["finish_reason"] = ARGUMENTS, "stop"
answered = sent_back(lambda **more: client.chat.completions.parse(model="m", response_format=GetWeather, **more))
print("parse sends back ", json.dumps(answered))
assert answered.get("parsed") == {"city": "Paris"}, "changed: `parsed` is left out"

(call,) = client.responses.parse(model="m", tools=tools, input="Weather in Paris?").output
print("responses parsed ", repr(call.parsed_arguments))
assert call.parsed_arguments == GetWeather(city="Paris"), "changed: responses.parse does not parse arguments"
client.responses.parse(model="m", tools=tools, input=[call])
print("responses.parse  ", json.dumps(bodies[-1]["input"][0]))
assert bodies[-1]["input"] == [ITEM], "changed: items of responses are not sent as they came"
print("as found: chat.completions sends what it parsed, responses does not")
PYTHON
"$folder/venv/bin/python" "$folder/finding.py"
