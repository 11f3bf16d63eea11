import json
import os

from openai import OpenAI
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


client = OpenAI(base_url=f"{os.environ['CHAT_URL']}/v1", api_key="none", max_retries=0)
question = [{"role": "user", "content": "What is the capital of France?"}]

completion = client.chat.completions.create(model="demo", messages=question, temperature=0, max_tokens=64)

stream = client.chat.completions.create(
    model="demo",
    messages=question,
    temperature=0,
    max_tokens=64,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)

with client.chat.completions.stream(model="demo", messages=question, temperature=0, max_tokens=64) as events:
    deltas = [event.delta for event in events if event.type == "content.delta"]
    final = events.get_final_completion()

parsed = client.chat.completions.parse(
    model="demo",
    messages=[{"role": "user", "content": "Ada is 36 years old. Give name and age as JSON."}],
    response_format=Person,
    temperature=0,
    max_tokens=100,
)

print(
    json.dumps(
        {
            "text": completion.choices[0].message.content,
            "finish_reason": completion.choices[0].finish_reason,
            "usage": completion.usage.total_tokens,
            "unknown_fields": sorted(completion.model_extra) + sorted(completion.usage.model_extra),
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
            "streamed_usage": chunks[-1].usage.total_tokens,
            "helped": "".join(deltas),
            "helped_text": final.choices[0].message.content,
            "parsed": parsed.choices[0].message.parsed.model_dump(),
            "models": [model.id for model in client.models.list()],
        }
    )
)
