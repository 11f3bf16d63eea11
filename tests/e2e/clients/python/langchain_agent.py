import json
import os

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

asked_for = []


def get_weather(city: str) -> str:
    """Get weather for a given city."""
    asked_for.append(city)
    return f"It's always sunny in {city}!"


class Person(BaseModel):
    """A person."""

    name: str
    age: int


model = ChatOpenAI(
    model="demo", base_url=f"{os.environ['CHAT_URL']}/v1", api_key="none", temperature=0, max_tokens=64, max_retries=0
)
question = "What is the capital of France?"
whole = model.invoke(question)
streamed = None
for chunk in model.stream(question, stream_usage=True):
    streamed = chunk if streamed is None else streamed + chunk
person = model.with_structured_output(Person).invoke("Ada is 36 years old. Give name and age as JSON.")

caller = ChatOpenAI(model="demo", base_url=f"{os.environ['TOOLS_URL']}/v1", api_key="none", max_retries=0)
agent = create_agent(model=caller, tools=[get_weather], system_prompt="You are a helpful assistant")
ask = {"messages": [{"role": "user", "content": "what is the weather in Paris"}]}
result = agent.invoke(ask)
tokens = [
    token.text for token, metadata in agent.stream(ask, stream_mode="messages") if metadata["langgraph_node"] == "model"
]

responses = ChatOpenAI(
    model="demo",
    base_url=f"{os.environ['TOOLS_URL']}/v1",
    api_key="none",
    max_retries=0,
    use_responses_api=True,
)
by_responses = create_agent(model=responses, tools=[get_weather]).invoke(ask)

print(
    json.dumps(
        {
            "text": whole.text,
            "usage": whole.usage_metadata["total_tokens"],
            "streamed": streamed.text,
            "streamed_usage": streamed.usage_metadata["total_tokens"],
            "parsed": person.model_dump(),
            "kinds": [message.type for message in result["messages"]],
            "calls": [[call["name"], call["args"]] for call in result["messages"][1].tool_calls],
            "asked_for": asked_for,
            "forecast": result["messages"][-1].text,
            "streamed_forecast": "".join(tokens),
            "forecast_by_responses": by_responses["messages"][-1].text,
        }
    )
)
