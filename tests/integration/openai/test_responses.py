"""/v1/responses through the openai client, over an engine that answers what a model would."""

from __future__ import annotations

import json
import threading

import httpx
import openai
import pytest
from languagepipes_node.end_model.openai import auth
from languagepipes_node.end_model.openai.auth import ApiKeys
from languagepipes_node.end_model.openai.responses import routes
from languagepipes_node.end_model.openai.responses.items import conversation
from languagepipes_node.end_model.requests import Failure
from pydantic import BaseModel
from support import chat_templates
from support.scripted_engine import forever, saying
from support.tool_model import codec_of

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a place.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
THINKING = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}[end]{% endfor %}[assistant]{# enable_thinking #}"
)


def ask(served, **parameters):
    return served.client.responses.create(**({"model": "tiny", "input": "Weather in Paris?"} | parameters))


def prompt_of(served) -> str:
    return served.codec.decode(served.engine.submissions[-1].prompt)


def test_a_text_is_answered_with_a_message_and_what_it_cost(serve):
    served = serve("Hello world")
    response = ask(served, metadata={"a": "b"}, temperature=0.5, instructions="Be brief.")
    assert response.output_text == "Hello world"
    assert (response.object, response.status, response.model) == ("response", "completed", "tiny")
    assert response.id.startswith("resp_")
    (item,) = response.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert item.id.startswith("msg_")
    submission = served.engine.submissions[0]
    assert response.usage.input_tokens == len(submission.prompt)
    assert response.usage.output_tokens == len(served.codec.encode("Hello world")) + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.metadata == {"a": "b"}
    assert (response.temperature, response.instructions, response.tool_choice) == (0.5, "Be brief.", "auto")
    assert submission.sampling.temperature == 0.5
    assert prompt_of(served).index("Be brief.") < prompt_of(served).index("Weather in Paris?")


def test_the_events_of_a_text_come_in_order_and_hold_what_the_response_holds(serve):
    served = serve("Hello world, how are you?")
    events = list(ask(served, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(deltas) > 1
    text = "Hello world, how are you?"
    assert "".join(event.delta for event in deltas) == text
    done = {event.type: event for event in events}
    assert done["response.output_text.done"].text == text
    assert done["response.content_part.done"].part.text == text
    final = done["response.completed"].response
    assert final.output_text == text
    assert done["response.output_item.done"].item == final.output[0]
    assert {event.item_id for event in deltas} == {final.output[0].id}
    assert done["response.created"].response.status == "in_progress"
    assert done["response.created"].response.id == final.id
    assert final.usage.output_tokens == len(served.codec.encode(text)) + 1


def test_a_stream_names_its_events_and_has_no_end_mark(serve):
    body = {"model": "tiny", "input": "x", "stream": True}
    lines = httpx.post(f"{serve('Hi').url}/v1/responses", json=body).text.split("\n\n")
    assert lines.pop() == ""
    for event in lines:
        name, data = event.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


def test_the_clients_stream_helper_reads_text_and_calls(hermes):
    with hermes(f"Let me see.\n{CALL}").client.responses.stream(
        model="tiny", input="Weather in Paris?", tools=[WEATHER]
    ) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds
    assert response.output_text == "Let me see."
    call = response.output[1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Paris"})


def test_a_calls_arguments_are_streamed_as_they_are_written_and_one_that_is_cut_is_incomplete(hermes):
    served = hermes(f"I look.{CALL}")
    text = f"I look.{CALL}"
    tokens = len(served.codec.encode(text[: text.index("ris")], add_special_tokens=False))
    events = list(ask(served, tools=[WEATHER], stream=True, max_output_tokens=tokens))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 3
    assert "".join(deltas) == '{"city": "Pa'
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == ['{"city": "Pa']
    whole = ask(served, tools=[WEATHER], max_output_tokens=tokens)
    for response in (events[-1].response, whole):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        message, call = response.output
        assert (message.status, message.content[0].text) == ("completed", "I look.")
        assert (call.name, call.arguments, call.status) == ("get_weather", '{"city": "Pa', "incomplete")
    ask(served, tools=[WEATHER], input="Go on.", previous_response_id=whole.id)
    assert "I look." in prompt_of(served)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_an_item_and_its_result_goes_back_by_its_id(hermes, stream):
    served = hermes(CALL)
    answer = ask(served, tools=[WEATHER], stream=stream)
    if stream:
        events = list(answer)
        response = events[-1].response
        arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert json.loads("".join(arguments)) == {"city": "Paris"}
        added = next(event.item for event in events if event.type == "response.output_item.added")
        assert (added.name, added.arguments) == ("get_weather", "")
    else:
        response = answer
    (call,) = response.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert call.id != call.call_id
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny, 31 degrees"}
    ask(served, tools=[WEATHER], input=[{"role": "user", "content": "Weather?"}, call.model_dump(), result])
    by_hand = prompt_of(served)
    assert "Sunny, 31 degrees" in by_hand
    assert "get_weather" in by_hand
    ask(served, tools=[WEATHER], previous_response_id=response.id, input=[result])
    assert prompt_of(served) == by_hand.replace("Weather?", "Weather in Paris?")


def test_the_shown_tools_are_flat_and_choices_hold(hermes):
    served = hermes("Hello")
    response = ask(served, tools=[WEATHER], tool_choice="none", parallel_tool_calls=False)
    assert response.tools[0].model_dump(exclude_none=True) == WEATHER
    assert (response.tool_choice, response.parallel_tool_calls) == ("none", False)
    assert "get_weather" not in prompt_of(served)
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}
    assert ask(served, tools=[WEATHER], tool_choice=allowed).tool_choice.model_dump(exclude_none=True) == allowed


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_demanded_call_is_held_to_a_grammar(hermes, choice):
    served = hermes(CALL)
    (call,) = ask(served, tools=[WEATHER], tool_choice=choice).output
    assert call.type == "function_call"
    assert served.engine.submissions[-1].grammar is not None


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_an_item_before_the_message_and_its_tokens_are_counted(serve, stream):
    codec = codec_of(THINKING + "{# <think> #}")
    served = serve(saying(codec, "<think>\nIt is Paris.\n</think>\n\nParis."), codec=codec, max_context_length=4096)
    answer = ask(served, stream=stream)
    if stream:
        events = list(answer)
        deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
        assert "".join(deltas) == "It is Paris."
        answer = events[-1].response
    thinking, message = answer.output
    assert (thinking.type, thinking.summary, thinking.content[0].text) == ("reasoning", [], "It is Paris.")
    assert message.content[0].text == "Paris."
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    ask(served, previous_response_id=answer.id, input="Sure?")
    assert "<think>It is Paris.</think>Paris." in prompt_of(served)
    ask(served, input=[{"role": "user", "content": "?"}, *(item.model_dump() for item in answer.output)])
    assert "<think>It is Paris.</think>Paris." in prompt_of(served)


def test_effort_reaches_the_template(serve):
    template = "effort {{ reasoning_effort }} " + chat_templates.HARMONY
    codec = codec_of(template)
    served = serve(saying(codec, "<|channel|>final<|message|>Paris."), codec=codec, max_context_length=4096)
    response = ask(served, reasoning={"effort": "minimal"})
    assert (response.output_text, response.reasoning.effort) == ("Paris.", "minimal")
    assert prompt_of(served).startswith("effort low ")


class City(BaseModel):
    name: str


def test_a_schema_is_kept_and_the_clients_parse_reads_the_answer(serve):
    served = serve('{"name": "Paris"}')
    response = served.client.responses.parse(model="tiny", input="A city?", text_format=City)
    assert response.output_parsed == City(name="Paris")
    assert served.engine.submissions[-1].grammar is not None
    assert response.text.format.type == "json_schema"
    assert ask(served, text={"format": {"type": "json_object"}}).text.format.type == "json_object"
    assert served.engine.submissions[-1].grammar is not None
    assert ask(served, text={"format": {"type": "text"}, "verbosity": "low"}).output_text == '{"name": "Paris"}'
    assert served.engine.submissions[-1].grammar is None


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(serve, stream):
    served = serve("Hello world, how are you?")
    answer = ask(served, max_output_tokens=2, stream=stream)
    if stream:
        events = list(answer)
        assert events[-1].type == "response.incomplete"
        answer = events[-1].response
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"
    assert answer.usage.output_tokens == 2
    assert answer.max_output_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_with_the_text_they_belong_to(serve, stream):
    answer = ask(serve("Hello world"), include=["message.output_text.logprobs"], top_logprobs=2, stream=stream)
    if stream:
        events = list(answer)
        streamed = [score for event in events if event.type == "response.output_text.delta" for score in event.logprobs]
        answer = events[-1].response
        assert len(streamed) == len(answer.output[0].content[0].logprobs)
    scores = answer.output[0].content[0].logprobs
    assert "".join(score.token for score in scores) == "Hello world"
    assert [len(score.top_logprobs) for score in scores] == [2] * len(scores)
    assert scores[0].logprob == -0.25


def test_a_response_is_retrieved_listed_gone_on_from_and_deleted(serve):
    served = serve("Hello world")
    first = ask(served, input=[{"role": "user", "content": [{"type": "input_text", "text": "My name is Alice."}]}])
    api = served.client.responses
    assert api.retrieve(first.id) == first
    second = ask(served, previous_response_id=first.id, input="What is my name?", instructions="Be brief.")
    assert second.previous_response_id == first.id
    prompt = prompt_of(served)
    places = [prompt.index(part) for part in ("Be brief.", "My name is Alice.", "Hello world", "What is my name?")]
    assert places == sorted(places)
    third = ask(served, previous_response_id=second.id, input="And again?")
    assert "My name is Alice." in prompt_of(served)
    assert "Be brief." not in prompt_of(served)
    (item,) = api.input_items.list(second.id).data
    assert (item.role, item.content[0].text) == ("user", "What is my name?")
    assert api.delete(first.id) is None
    with pytest.raises(openai.NotFoundError, match="was deleted"):
        api.retrieve(first.id)
    assert ask(served, previous_response_id=third.id, input="Still?").status == "completed"
    assert "My name is Alice." in prompt_of(served)


def test_a_conversation_is_read_once_and_beside_the_event_loop(serve, monkeypatch):
    seen = []

    def noting(*arguments):
        seen.append(threading.current_thread().name)
        return conversation(*arguments)

    monkeypatch.setattr(routes, "conversation", noting)
    served = serve("Hello")
    first = ask(served)
    ask(served, previous_response_id=first.id, input="And again?")
    assert [name.split("_")[0] for name in seen] == ["tokenise", "tokenise"]


def test_items_of_stored_responses_may_be_referred_to(hermes):
    served = hermes(CALL)
    first = ask(served, tools=[WEATHER])
    (call,) = first.output
    given = served.client.responses.input_items.list(first.id).data[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}
    references = [{"type": "item_reference", "id": item.id} for item in (given, call)]
    ask(served, tools=[WEATHER], input=[*references, result], store=False)
    by_reference = prompt_of(served)
    ask(served, tools=[WEATHER], previous_response_id=first.id, input=[result])
    assert by_reference == prompt_of(served)
    served.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="There is no item") as refused:
        ask(served, input=[{"type": "item_reference", "id": call.id}, result])
    assert refused.value.param == "input[0].id"


def test_ids_that_clients_give_to_items_are_not_found(serve):
    served = serve("Hello")
    (first,) = ask(served).output
    for id in ("msg_1", first.id):
        sent = ask(
            served, input=[{"id": id, "role": "assistant", "content": "Sent."}, {"role": "user", "content": "x"}]
        )
        listed = served.client.responses.input_items.list(sent.id, order="asc").data
        assert listed[0].content[0].text == "Sent."
        assert listed[0].id.startswith("msg_")
        assert listed[0].id != id
        ask(served, input=[{"type": "item_reference", "id": listed[0].id}, {"role": "user", "content": "y"}])
        assert "Sent." in prompt_of(served)
    with pytest.raises(openai.NotFoundError, match="There is no item 'msg_1'"):
        ask(served, input=[{"type": "item_reference", "id": "msg_1"}])
    ask(served, input=[{"type": "item_reference", "id": first.id}, {"role": "user", "content": "z"}])
    assert "Sent." not in prompt_of(served)


def test_a_streamed_response_is_stored_too(serve):
    served = serve("Hello world")
    final = list(ask(served, stream=True))[-1].response
    assert served.client.responses.retrieve(final.id) == final


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_answered_and_not_stored(serve, stream):
    served = serve("Hello world")
    answer = ask(served, include=["message.output_text.logprobs"], top_logprobs=2, stream=stream)
    if stream:
        answer = list(answer)[-1].response
    assert answer.output[0].content[0].logprobs
    kept = served.client.responses.retrieve(answer.id)
    assert (kept.output_text, kept.output[0].content[0].logprobs) == ("Hello world", [])


def test_what_is_not_to_be_stored_is_not(serve):
    served = serve("Hello world")
    response = ask(served, store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError, match="There is no response"):
        served.client.responses.retrieve(response.id)
    without = serve("Hello world", max_stored_responses=0)
    assert ask(without).store is False


def test_input_items_are_paged_in_both_orders(serve):
    served = serve("x")
    given = [{"role": "user", "content": f"number {number}"} for number in range(7)]
    response = ask(served, input=given)
    api = served.client.responses.input_items
    texts = [item.content[0].text for item in api.list(response.id, limit=3)]  # the client asks for further pages
    assert texts == [f"number {number}" for number in reversed(range(7))]
    page = api.list(response.id, order="asc", limit=2)
    assert [item.content[0].text for item in page.data] == ["number 0", "number 1"]
    assert page.has_more
    rest = api.list(response.id, order="asc", after=page.data[-1].id)
    assert [item.content[0].text for item in rest.data] == [f"number {number}" for number in range(2, 7)]
    assert not rest.has_more


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_is_too_large_to_keep_says_that_it_is_not_stored(serve, stream):
    served = serve("Hello world", max_stored_response_bytes=6000)
    small = ask(served)
    assert small.store
    large = ask(served, metadata={str(number): "x" * 500 for number in range(16)}, stream=stream)
    response = list(large)[-1].response if stream else large
    assert not response.store
    with pytest.raises(openai.NotFoundError, match="was forgotten at once"):
        served.client.responses.retrieve(response.id)
    assert served.client.responses.retrieve(small.id).store


def test_the_best_summary_of_thinking_there_is_is_none(serve):
    codec = codec_of(THINKING)
    response = ask(serve(saying(codec, "<think>Hmm.</think>Yes"), codec=codec), reasoning={"summary": "auto"})
    thinking, message = response.output
    assert (thinking.summary, thinking.content[0].text, message.content[0].text) == ([], "Hmm.", "Yes")
    assert response.reasoning.summary is None


def test_the_least_recently_used_responses_are_forgotten_and_it_is_said_so(serve):
    served = serve("Hello", max_stored_responses=2)
    first, second = ask(served), ask(served)
    served.client.responses.retrieve(first.id)
    third = ask(served)
    with pytest.raises(openai.NotFoundError, match="was forgotten: this server keeps the 2 responses") as refused:
        ask(served, previous_response_id=second.id)
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "response_not_found")
    assert served.client.responses.retrieve(first.id).id == first.id
    assert served.client.responses.retrieve(third.id).id == third.id


def test_a_response_is_its_keys_alone(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "_CHECK_SECONDS", 0.0)
    for name in ("alice", "bob"):
        (tmp_path / name).write_text(f"sk-{name}")
    served = serve("Hello", api_keys=ApiKeys(tmp_path))
    served.key = "sk-alice"
    response = ask(served)
    assert served.client.responses.retrieve(response.id).id == response.id
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-bob", max_retries=0) as bob:
        for attempt in (
            lambda: bob.responses.retrieve(response.id),
            lambda: bob.responses.delete(response.id),
            lambda: bob.responses.input_items.list(response.id),
            lambda: bob.responses.create(model="tiny", input="x", previous_response_id=response.id),
        ):
            with pytest.raises(openai.NotFoundError, match="There is no response"):
                attempt()
    assert served.client.responses.retrieve(response.id).id == response.id


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_its_status(serve, stream):
    served = serve(lambda submission: iter([Failure(submission.request_id, "ring_down", "a stage is lost")]))
    with pytest.raises(openai.InternalServerError) as failed:
        list(ask(served, stream=stream))
    assert failed.value.status_code == 503
    assert failed.value.code == "ring_down"


def test_a_failure_in_a_stream_is_told_by_both_events_and_raised(serve):
    def script(submission):
        yield from served.codec.encode("Hello world")
        yield Failure(submission.request_id, "ring_down", "a stage is lost")

    served = serve(script, pace_seconds=0.001)
    events = []
    with pytest.raises(openai.APIError, match="a stage is lost"):
        events += ask(served, stream=True)
    body = {"model": "tiny", "input": "x", "stream": True}
    text = httpx.post(f"{served.url}/v1/responses", json=body).text
    told = [json.loads(event.split("data: ")[1]) for event in text.strip().split("\n\n")]
    failed, error = told[-2:]
    assert [one["type"] for one in told[-5:-2]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    (item,) = failed["response"]["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", told[-5]["text"])
    assert told[-5]["text"].startswith("Hello")
    assert failed["response"]["store"] is False
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "server_error"
    assert (error["type"], error["code"], error["error"]["type"]) == ("error", "ring_down", "server_error")
    assert error["sequence_number"] == failed["sequence_number"] + 1


def test_a_client_that_leaves_stops_its_answer_and_nothing_is_stored(serve, codec):
    served = serve(forever(codec), pace_seconds=0.001)
    with httpx.stream("POST", f"{served.url}/v1/responses", json={"model": "tiny", "input": "x", "stream": True}) as r:
        next(r.iter_lines())
    served.wait_until_idle()


def test_consecutive_answers_stay_two_and_the_system_speaks_once(serve):
    served = serve("x")
    history = [
        {"role": "developer", "content": "Say little."},
        {"role": "user", "content": "A number?"},
        {"role": "assistant", "phase": "commentary", "content": "I should say four."},
        {"role": "assistant", "phase": "final_answer", "content": "Four."},
        {"role": "user", "content": "Again."},
    ]
    ask(served, input=history, instructions="Be brief.")
    prompt = prompt_of(served)
    assert "Be brief.\n\nSay little." in prompt
    assert prompt.index("I should say four.") < prompt.index("Four.") < prompt.index("Again.")
