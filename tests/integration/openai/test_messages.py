"""/v1/messages through the anthropic client, over an engine that answers what a model would."""

from __future__ import annotations

import json

import anthropic
import httpx
import pytest
from languagepipes_node.end_model.openai import auth, generation
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.requests import Failure
from support import chat_templates
from support.scripted_engine import saying
from support.tool_model import codec_of

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
NOW = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
QUESTION = [{"role": "user", "content": "Weather in Paris?"}]
THINKS = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}[end]{% endfor %}[assistant]"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
THOUGHT = "<think>\nIt is Paris.\n</think>\n\nParis."


@pytest.fixture
def client():
    """client(served, key): the anthropic client."""
    clients = []

    def connect(served, key="none", **options):
        clients.append(anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0, timeout=20, **options))
        return clients[-1]

    yield connect
    for one in clients:
        one.close()


@pytest.fixture
def thinking(serve):
    codec = codec_of(THINKS)
    return lambda text=THOUGHT: serve(saying(codec, text), codec=codec, max_context_length=4096)


@pytest.fixture
def ask(client):
    def create(served, **parameters):
        return client(served).messages.create(
            **({"model": "tiny", "max_tokens": 256, "messages": QUESTION} | parameters)
        )

    return create


def prompt_of(served) -> str:
    return served.codec.decode(served.engine.submissions[-1].prompt)


def test_a_text_is_answered_with_a_block_and_what_it_cost(serve, ask):
    served = serve("Hello world")
    message = ask(
        served,
        system="Be brief.",
        metadata={"user_id": "u"},
        extra_body={"temperature": 0.5, "top_k": 3, "top_p": 0.9},
    )
    assert (message.type, message.role, message.model, message.stop_reason) == (
        "message", "assistant", "tiny", "end_turn"
    )  # fmt: skip
    assert message.id.startswith("msg_")
    (block,) = message.content
    assert (block.type, block.text) == ("text", "Hello world")
    submission = served.engine.submissions[0]
    assert message.usage.input_tokens == len(submission.prompt)
    assert message.usage.output_tokens == len(served.codec.encode("Hello world")) + 1
    sampling = submission.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, submission.max_tokens) == (0.5, 3, 0.9, 256)
    assert prompt_of(served).index("Be brief.") < prompt_of(served).index("Weather in Paris?")


def test_blocks_and_turns_of_one_side_are_joined(serve, ask):
    served = serve("x")
    hint = {"cache_control": {"type": "ephemeral"}}
    ask(
        served,
        system=[{"type": "text", "text": "Be brief.", **hint}, {"type": "text", "text": "Be kind."}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two.", **hint}]},
            {"role": "user", "content": "Three."},
        ],
    )
    assert "Be brief.\nBe kind." in prompt_of(served)
    assert "One.\nTwo.\nThree." in prompt_of(served)


def test_the_events_of_a_text_come_in_order(serve):
    served = serve("Hello world, how are you?")
    body = {"model": "tiny", "max_tokens": 64, "messages": QUESTION, "stream": True}
    response = httpx.post(f"{served.url}/v1/messages", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for event in response.text.strip().split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert events[-1]["type"] == name.removeprefix("event: ")
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert [event["type"] for event in events if event not in deltas] == [
        "message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"
    ]  # fmt: skip
    assert "".join(event["delta"]["text"] for event in deltas) == "Hello world, how are you?"
    start, end = events[0]["message"], events[-2]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] == len(served.engine.submissions[0].prompt)
    assert (end["delta"]["stop_reason"], end["delta"]["stop_sequence"]) == ("end_turn", None)
    assert end["usage"]["output_tokens"] == len(served.codec.encode("Hello world, how are you?")) + 1


def test_the_clients_stream_helper_reads_text_and_calls(hermes, client):
    served = hermes(f"Let me see.\n{CALL}\n" + '<tool_call>{"name": "now", "arguments": {}}</tool_call>')
    with client(served).messages.stream(
        model="tiny", max_tokens=256, messages=QUESTION, tools=[WEATHER, NOW]
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert "input_json" in kinds
    text, weather, now = message.content
    assert text.text == "Let me see."
    assert (weather.name, weather.input, now.name, now.input) == ("get_weather", {"city": "Paris"}, "now", {})
    assert weather.id != now.id
    assert message.stop_reason == "tool_use"


def test_a_calls_input_is_streamed_as_it_is_written_and_one_that_is_cut_has_what_is_whole(hermes, client):
    call = CALL.replace('"Paris"', '"Paris", "days": [1, 2]')
    served = hermes(call)
    cut = call.index("2]")
    tokens = len(served.codec.encode(call[:cut], add_special_tokens=False))
    request = {"model": "tiny", "max_tokens": tokens, "messages": QUESTION, "tools": [WEATHER]}
    with client(served).messages.stream(**request) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    pieces = [event.partial_json for event in events if event.type == "input_json"]
    assert len(pieces) > 5
    assert "".join(pieces) == call[call.index('{"city"') : cut]
    whole = client(served).messages.create(**request)
    for message in (streamed, whole):
        [block] = message.content
        assert (block.type, block.name, message.stop_reason) == ("tool_use", "get_weather", "max_tokens")
        assert block.input == {"city": "Paris", "days": [1]}


@pytest.mark.parametrize(("end", "tokens"), [("", 500), (', "more": "', 0)], ids=["whole", "cut"])
def test_numbers_in_a_calls_input_keep_their_digits(hermes, end, tokens):
    digits = "123456789012345678901234567890"
    call = CALL.replace('"Paris"', f'"Paris", "days": {digits}' + (end and f'{end}x"'))
    served = hermes(call)
    begun = call[: call.index(end) + len(end)] if end else call
    most = tokens or len(served.codec.encode(begun, add_special_tokens=False))
    request = {"model": "tiny", "max_tokens": most, "messages": QUESTION, "tools": [WEATHER]}
    answer = httpx.post(f"{served.url}/v1/messages", json=request)
    assert f'"days":{digits}' in answer.text.replace(" ", "")
    assert answer.json()["content"][0]["input"] == {"city": "Paris", "days": int(digits)}


def test_input_that_is_no_json_is_handed_on_by_the_name_that_anthropic_gives_it(hermes, ask):
    [block] = ask(hermes(CALL.replace('"Paris"', "{Paris}")), tools=[WEATHER]).content
    assert block.input == {"INVALID_JSON": '{"city": {Paris}}'}


def test_a_call_and_its_result_go_back_to_the_model(hermes, ask):
    served = hermes(CALL)
    message = ask(served, tools=[WEATHER])
    (call,) = message.content
    assert (call.type, call.name, call.input, message.stop_reason) == (
        "tool_use", "get_weather", {"city": "Paris"}, "tool_use"
    )  # fmt: skip
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Sunny"}]}
    history = [
        *QUESTION,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": "And tomorrow?"}]},
    ]
    ask(served, tools=[WEATHER], messages=history)
    prompt = prompt_of(served)
    places = [prompt.index(part) for part in ('{"city": "Paris"}', "Sunny", "And tomorrow?")]
    assert places == sorted(places)
    history[-1]["content"][0] = result | {"content": "no such place", "is_error": True}
    ask(served, tools=[WEATHER], messages=history)
    assert "Error: no such place" in prompt_of(served)


def test_the_clients_tool_runner_does_without_the_thread_that_it_asks_for(serve, client):
    codec = codec_of(chat_templates.HERMES)

    def script(submission):
        yield from codec.encode("It is sunny." if "[tool]" in codec.decode(submission.prompt) else CALL)
        yield 2

    served = serve(script, codec=codec, max_context_length=4096)
    asked_for = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a place."""
        asked_for.append(city)
        return "sunny"

    asked = {"model": "tiny", "max_tokens": 100, "messages": [{"role": "user", "content": "Weather in Paris?"}]}
    last = client(served).beta.messages.tool_runner(tools=[get_weather], **asked).until_done()
    assert (last.content[0].text, asked_for) == ("It is sunny.", ["Paris"])
    with pytest.raises(anthropic.BadRequestError) as refused:
        client(served).beta.messages.create(thread={"type": "create"}, **asked)
    assert refused.value.body["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert "thread" in refused.value.body["error"]["message"]


def test_choices_of_tools_hold(hermes, ask):
    served = hermes(CALL)
    assert ask(served, tools=[WEATHER], tool_choice={"type": "none"}).content[0].type == "text"
    assert "get_weather" not in prompt_of(served)
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}):
        assert ask(served, tools=[WEATHER, NOW], tool_choice=choice).content[0].type == "tool_use"
        assert served.engine.submissions[-1].grammar is not None
    twice = hermes(CALL + CALL)
    assert len(ask(twice, tools=[WEATHER]).content) == 2
    single = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(ask(twice, tools=[WEATHER], tool_choice=single).content) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("parameters", "text", "reason", "stop"),
    [
        ({"max_tokens": 2}, None, "max_tokens", None),
        ({"stop_sequences": ["how", "xyz"]}, "Hello world, ", "stop_sequence", "how"),
        ({"stop_sequences": ["xyz"]}, "Hello world, how are you?", "end_turn", None),
    ],
)
def test_the_reason_of_the_end_is_told(serve, ask, client, stream, parameters, text, reason, stop):
    served = serve("Hello world, how are you?")
    if stream:
        with client(served).messages.stream(
            **({"model": "tiny", "max_tokens": 256, "messages": QUESTION} | parameters)
        ) as events:
            message = events.get_final_message()
    else:
        message = ask(served, **parameters)
    assert (message.stop_reason, message.stop_sequence) == (reason, stop)
    assert text is None or message.content[0].text == text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_thinking_is_a_block_of_its_own_and_goes_back(thinking, ask, client, stream, display):
    served = thinking()
    parameters = {
        "model": "tiny",
        "max_tokens": 2000,
        "messages": QUESTION,
        "thinking": {"type": "enabled", "budget_tokens": 1024, "display": display},
    }
    if stream:
        with client(served).messages.stream(**parameters) as events:
            message = events.get_final_message()
    else:
        message = ask(served, **parameters)
    thought, text = message.content
    shown = "It is Paris." if display == "summarized" else ""
    assert (thought.type, thought.thinking, text.text) == ("thinking", shown, "Paris.")
    assert thought.signature
    assert message.usage.output_tokens_details.thinking_tokens > 0
    answer = {"role": "assistant", "content": message.content}
    ask(served, messages=[*QUESTION, answer, {"role": "user", "content": "Sure?"}])
    assert ("<think>It is Paris.</think>Paris." in prompt_of(served)) == bool(shown)


def test_thinking_is_switched_off(thinking, ask):
    served = thinking("Paris.")
    ask(served, thinking={"type": "disabled"})
    assert prompt_of(served).endswith("</think>\n\n")
    ask(served, thinking={"type": "adaptive"})
    assert prompt_of(served).endswith("[assistant]")


def test_a_schema_is_kept(serve, ask):
    served = serve('{"name": "Paris"}')
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    ask(served, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert served.engine.submissions[-1].grammar is not None


def test_counted_tokens_are_those_of_the_prompt(hermes, ask, client):
    served = hermes()
    counted = client(served).messages.count_tokens(
        model="tiny", messages=QUESTION, system="Be brief.", tools=[WEATHER], tool_choice={"type": "auto"}
    )
    assert served.engine.submissions == []
    used = ask(served, system="Be brief.", tools=[WEATHER]).usage.input_tokens
    assert counted.input_tokens == used
    served.wait_until_idle()


def test_the_key_is_taken_from_either_header_and_errors_have_the_clients_form(serve, client, tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    (tmp_path / "alice").write_text("sk-alice")
    served = serve("Hello", api_keys=ApiKeys(tmp_path))
    ask = {"model": "tiny", "max_tokens": 8, "messages": QUESTION}
    assert client(served, "sk-alice").messages.create(**ask).content
    bearer = anthropic.Anthropic(base_url=served.url, auth_token="sk-alice", max_retries=0)
    assert bearer.messages.create(**ask).content
    bearer.close()
    with pytest.raises(anthropic.AuthenticationError) as refused:
        client(served, "sk-bob").messages.create(**ask)
    assert refused.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "Incorrect API key provided."},
        "request_id": refused.value.request_id,
    }
    keys = httpx.get(f"{served.url}/v1/models", headers={"x-api-key": "sk-alice"})
    assert keys.status_code == 200
    both = {"x-api-key": "sk-alice", "authorization": "Bearer sk-bob"}
    assert httpx.get(f"{served.url}/v1/models", headers=both).status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_the_request_id_that_the_client_looks_for(serve, ask, stream):
    served = serve("Hello world")
    body = {"model": "tiny", "max_tokens": 8, "messages": QUESTION, "stream": stream}
    answer = httpx.post(f"{served.url}/v1/messages", json=body)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "request-id" not in httpx.get(f"{served.url}/v1/models").headers
    if not stream:
        assert ask(served)._request_id.startswith("req_")


@pytest.mark.parametrize("stream", [False, True])
def test_a_ring_that_is_down_is_an_overload(serve, ask, stream):
    served = serve(lambda submission: iter([Failure(submission.request_id, "ring_down", "a stage is lost")]))
    with pytest.raises(anthropic.ServiceUnavailableError) as failed:
        list(ask(served, stream=stream))
    assert failed.value.body["error"]["type"] == "overloaded_error"
    assert failed.value.response.headers["retry-after"]


def test_a_failure_in_a_stream_is_an_event_that_the_client_raises(serve, ask):
    def script(submission):
        yield from served.codec.encode("Hello world")
        yield Failure(submission.request_id, "ring_down", "a stage is lost")

    served = serve(script, pace_seconds=0.001)
    events = []
    with pytest.raises(anthropic.APIStatusError, match="a stage is lost") as failed:
        events += ask(served, stream=True)
    assert failed.value.body["error"]["type"] == "overloaded_error"
    assert failed.value.body["request_id"] == failed.value.request_id


def test_a_silent_stream_is_kept_open_by_pings(serve, codec, ask, monkeypatch):
    monkeypatch.setattr(generation, "_SILENCE_SECONDS", 0.05)
    served = serve("Hello world", pace_seconds=0.3)
    body = {"model": "tiny", "max_tokens": 4, "messages": QUESTION, "stream": True}
    text = httpx.post(f"{served.url}/v1/messages", json=body).text
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in text
    assert [event.type for event in ask(served, stream=True, max_tokens=4)][-1] == "message_stop"
