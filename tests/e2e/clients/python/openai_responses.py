import json
import os

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


client = OpenAI(base_url=f"{os.environ['CHAT_URL']}/v1", api_key="none", max_retries=0)
question = "What is the capital of France?"

response = client.responses.create(model="demo", input=question, temperature=0, max_output_tokens=64)

with client.responses.stream(model="demo", input=question, temperature=0, max_output_tokens=64) as stream:
    deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    final = stream.get_final_response()

parsed = client.responses.parse(
    model="demo",
    input="Ada is 36 years old. Give name and age as JSON.",
    text_format=Person,
    temperature=0,
    max_output_tokens=100,
)

following = client.responses.create(
    model="demo", input="Say it again.", previous_response_id=response.id, temperature=0, max_output_tokens=64
)

tools_client = OpenAI(base_url=f"{os.environ['TOOLS_URL']}/v1", api_key="none", max_retries=0)
tools = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    }
]
items = [{"role": "user", "content": "What is the weather like in Paris?"}]
called = tools_client.responses.create(model="demo", input=items, tools=tools)
(call,) = [item for item in called.output if item.type == "function_call"]
items += [*called.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
answered = tools_client.responses.create(model="demo", input=items, tools=tools)

print(
    json.dumps(
        {
            "text": response.output_text,
            "status": response.status,
            "usage": response.usage.total_tokens,
            "unknown_fields": sorted(response.model_extra) + sorted(response.usage.model_extra),
            "streamed": "".join(deltas),
            "streamed_text": final.output_text,
            "parsed": parsed.output_parsed.model_dump(),
            "retrieved": client.responses.retrieve(response.id).output_text,
            "remembers": following.usage.input_tokens > response.usage.total_tokens,
            "name": call.name,
            "arguments": json.loads(call.arguments),
            "forecast": answered.output_text,
        }
    )
)
