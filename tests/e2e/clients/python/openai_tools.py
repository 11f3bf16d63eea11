import json
import os

import openai
from openai import OpenAI
from pydantic import BaseModel


class GetWeather(BaseModel):
    """The weather of a place."""

    city: str


client = OpenAI(base_url=f"{os.environ['TOOLS_URL']}/v1", api_key="none", max_retries=0)
tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]
messages = [{"role": "user", "content": "What is the weather like in Paris?"}]

parsed = client.chat.completions.parse(model="demo", messages=messages, tools=tools)
(call,) = parsed.choices[0].message.tool_calls

with client.chat.completions.stream(model="demo", messages=messages, tools=tools) as stream:
    done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]

messages += [parsed.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
answer = client.chat.completions.create(model="demo", messages=messages, tools=tools)

print(
    json.dumps(
        {
            "finish_reason": parsed.choices[0].finish_reason,
            "content": parsed.choices[0].message.content,
            "name": call.function.name,
            "arguments": call.function.parsed_arguments.model_dump(),
            "streamed": [[event.name, event.parsed_arguments.model_dump()] for event in done],
            "text": answer.choices[0].message.content,
        }
    )
)
