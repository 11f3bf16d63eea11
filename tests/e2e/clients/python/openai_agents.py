import asyncio
import json
import os

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

set_tracing_disabled(True)  # traces go to OpenAI
asked_for = []


@function_tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    asked_for.append(city)
    return f"The weather in {city} is sunny."


class Person(BaseModel):
    name: str
    age: int


async def run(kind) -> dict:
    tools = AsyncOpenAI(base_url=f"{os.environ['TOOLS_URL']}/v1", api_key="none", max_retries=0)
    chat = AsyncOpenAI(base_url=f"{os.environ['CHAT_URL']}/v1", api_key="none", max_retries=0)
    agent = Agent(
        name="Assistant",
        instructions="You are a helpful assistant.",
        model=kind(model="demo", openai_client=tools),
        tools=[get_weather],
    )
    asked_for.clear()
    result = await Runner.run(agent, "What's the weather in Paris?")
    streamed = Runner.run_streamed(agent, "What's the weather in Paris?")
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    typed = Agent(
        name="Reader",
        instructions="Give name and age as JSON.",
        model=kind(model="demo", openai_client=chat),
        model_settings=ModelSettings(temperature=0, max_tokens=100),
        output_type=Person,
    )
    person = await Runner.run(typed, "Ada is 36 years old.")
    return {
        "forecast": result.final_output,
        "requests": result.context_wrapper.usage.requests,
        "counted": result.context_wrapper.usage.total_tokens > 0,
        "asked_for": list(asked_for),
        "streamed_forecast": streamed.final_output,
        "deltas": "".join(deltas),
        "parsed": person.final_output.model_dump(),
    }


async def main() -> None:
    print(json.dumps({"chat": await run(OpenAIChatCompletionsModel), "responses": await run(OpenAIResponsesModel)}))


asyncio.run(main())
