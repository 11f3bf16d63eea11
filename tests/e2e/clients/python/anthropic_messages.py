import json
import os

import anthropic

client = anthropic.Anthropic(base_url=os.environ["CHAT_URL"], api_key="none", max_retries=0)
question = [{"role": "user", "content": "What is the capital of France?"}]
greedy = {"temperature": 0}

message = client.messages.create(model="demo", max_tokens=64, messages=question, extra_body=greedy)
with client.messages.stream(model="demo", max_tokens=64, messages=question, extra_body=greedy) as stream:
    streamed = "".join(stream.text_stream)
    final = stream.get_final_message()
counted = client.messages.count_tokens(model="demo", messages=question)

caller = anthropic.Anthropic(base_url=os.environ["TOOLS_URL"], api_key="none", max_retries=0)
tools = [
    {
        "name": "get_weather",
        "description": "Get the current weather in a given city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
messages = [{"role": "user", "content": "What is the weather like in Paris?"}]
with caller.messages.stream(model="demo", max_tokens=1024, tools=tools, messages=messages) as stream:
    partial = "".join(event.partial_json for event in stream if event.type == "input_json")
    called = stream.get_final_message()
(use,) = [block for block in called.content if block.type == "tool_use"]
messages += [
    {"role": "assistant", "content": called.content},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]},
]
answer = caller.messages.create(model="demo", max_tokens=1024, tools=tools, messages=messages)

asked_for = []


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Get the weather of a city.

    Args:
        city: The name of the city.
    """
    asked_for.append(city)
    return "sunny"


runner = caller.beta.messages.tool_runner(
    model="demo",
    max_tokens=1024,
    tools=[get_weather],
    messages=[{"role": "user", "content": "What is the weather like in Paris?"}],
)
last = runner.until_done()

print(
    json.dumps(
        {
            "text": message.content[0].text,
            "stop_reason": message.stop_reason,
            "usage": [message.usage.input_tokens, message.usage.output_tokens],
            "streamed": streamed,
            "streamed_text": final.content[0].text,
            "streamed_usage": [final.usage.input_tokens, final.usage.output_tokens],
            "unknown_fields": sorted(message.model_extra) + sorted(message.usage.model_extra),
            "counted": counted.input_tokens,
            "blocks": [block.type for block in called.content],
            "tool_stop_reason": called.stop_reason,
            "name": use.name,
            "input": use.input,
            "partial": json.loads(partial),
            "forecast": answer.content[0].text,
            "asked_for": asked_for,
            "run_forecast": last.content[0].text,
        }
    )
)
