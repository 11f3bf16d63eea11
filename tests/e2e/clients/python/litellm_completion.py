import json
import os

import litellm

litellm.suppress_debug_info = True  # it prints a list of providers where it knows no price

question = [{"content": "What is the capital of France?", "role": "user"}]
options = {"model": "openai/demo", "api_base": f"{os.environ['CHAT_URL']}/v1", "api_key": "none", "temperature": 0}
whole = litellm.completion(messages=question, max_tokens=64, **options)
chunks = list(
    litellm.completion(messages=question, max_tokens=64, stream=True, stream_options={"include_usage": True}, **options)
)
rebuilt = litellm.stream_chunk_builder(chunks, messages=question)

tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
messages = [{"role": "user", "content": "What's the weather like in Paris?"}]
options |= {"api_base": f"{os.environ['TOOLS_URL']}/v1"}
called = litellm.completion(messages=messages, tools=tools, tool_choice="auto", **options)
(call,) = called.choices[0].message.tool_calls
streamed_call = litellm.stream_chunk_builder(
    list(litellm.completion(messages=messages, tools=tools, stream=True, **options)), messages=messages
)
messages += [
    called.choices[0].message,
    {"tool_call_id": call.id, "role": "tool", "name": call.function.name, "content": "sunny"},
]
answer = litellm.completion(messages=messages, tools=tools, **options)

print(
    json.dumps(
        {
            "text": whole.choices[0].message.content,
            "usage": whole.usage.total_tokens,
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
            "streamed_usage": rebuilt.usage.total_tokens,
            "finish_reason": called.choices[0].finish_reason,
            "name": call.function.name,
            "arguments": json.loads(call.function.arguments),
            "streamed_arguments": json.loads(streamed_call.choices[0].message.tool_calls[0].function.arguments),
            "forecast": answer.choices[0].message.content,
        }
    )
)
