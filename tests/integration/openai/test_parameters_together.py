"""Parameters of unlike kinds in one request: stopping and showing, tools, thinking and grammars; on all routes."""

from __future__ import annotations

import json

import httpx
import pytest
from languagepipes_node.end_model.text import SamplingDefaults
from support import chat_templates
from support.scripted_engine import saying
from support.tool_model import NOW, WEATHER, codec_of

QUESTION = [{"role": "user", "content": "Weather in Paris?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
CHAT = "/v1/chat/completions"
THINKS = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}[end]{% endfor %}[assistant]"
)
ROUTES = {
    CHAT: {"messages": QUESTION},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 50},
}


@pytest.fixture
def hermes(serve):
    def start(text=CALL, special=(), **options):
        codec = codec_of(chat_templates.HERMES, list(special))
        return serve(saying(codec, text), codec=codec, max_context_length=4096, **options)

    return start


@pytest.fixture
def thinking(serve):
    def start(text, special=()):
        codec = codec_of(THINKS, list(special))
        return serve(saying(codec, text), codec=codec, max_context_length=4096)

    return start


def post(served, path=CHAT, **body):
    response = httpx.post(served.url + path, json={"model": "tiny", **ROUTES.get(path, {}), **body})
    assert response.status_code == 200, response.text
    return response.json()


def events(served, path=CHAT, **body):
    text = httpx.post(served.url + path, json={"model": "tiny", "stream": True, **ROUTES.get(path, {}), **body}).text
    data = [line[len("data: ") :] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


@pytest.mark.parametrize("special", [(), MARKS], ids=["text", "special tokens"])
def test_token_ids_are_shown_beside_calls(hermes, special):
    served = hermes(f"Let me see.\n{CALL}", special)
    said = list(served.codec.encode(f"Let me see.\n{CALL}"))
    whole = post(served, tools=[WEATHER], return_token_ids=True)
    choice = whole["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert choice["token_ids"][: len(said)] == said
    assert whole["prompt_token_ids"] == list(served.engine.submissions[0].prompt)
    chunks = events(served, tools=[WEATHER], return_token_ids=True)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    ids = [token for chunk in chunks for token in chunk["choices"][0].get("token_ids") or []]
    assert ids == choice["token_ids"]
    names = [
        call["function"]["name"]
        for chunk in chunks
        for call in chunk["choices"][0]["delta"].get("tool_calls", [])
        if "name" in call["function"]
    ]
    assert names == ["get_weather"]


@pytest.mark.parametrize("special", [(), MARKS], ids=["text", "special tokens"])
def test_a_stop_string_may_hold_a_mark_of_a_call(hermes, special):
    served = hermes(f"Well.\n{CALL}\nMore.", special)
    stop = 'Paris", "days'
    choice = post(served, tools=[WEATHER], stop=["\n</tool_call>\nMo", stop])["choices"][0]
    # The call has begun, and is not said to be made.
    [call] = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "Well.")
    assert call["function"]["arguments"] == '{"city": "'
    # The call is complete before this one begins.
    choice = post(served, tools=[WEATHER], stop=["</tool_call>\nMo"], include_stop_str_in_output=True)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris", "days": 3}


@pytest.mark.parametrize("special", [(), MARKS], ids=["text", "special tokens"])
def test_stop_strings_are_looked_for_in_thinking_unless_min_tokens_are_missing(thinking, special):
    said = "<think>\nOne STOP two.\n</think>\n\nParis STOP is it."
    served = thinking(said, special)
    choice = post(served, stop=["STOP"])["choices"][0]
    assert (choice["message"]["reasoning"].strip(), choice["message"]["content"]) == ("One", "")
    thought = len(served.codec.encode("<think>\nOne STOP two.\n</think>\n\n"))
    choice = post(served, stop=["STOP"], min_tokens=thought)["choices"][0]
    assert choice["message"]["reasoning"] == "One STOP two."
    assert choice["message"]["content"] == "Paris "
    shown = post(served, stop=["STOP"], min_tokens=thought, include_stop_str_in_output=True)["choices"][0]
    assert shown["message"]["content"] == "Paris STOP"


def test_a_stop_string_of_special_tokens_and_text_leaves_the_marks_of_thinking_readable(thinking):
    said = "<think>\nOne.\n</think>\n\nParis."
    served = thinking(said, MARKS)
    choice = post(served, stop=["</think>\n\nRome"])["choices"][0]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("One.", "Paris.")
    choice = post(served, stop=["</think>\n\nPar"])["choices"][0]
    assert (choice["message"]["reasoning"].strip(), choice["message"]["content"]) == ("One.", "")


def test_special_tokens_are_shown_beside_what_is_read(thinking):
    served = thinking("<think>\nOne.\n</think>\n\nPar<|im_start|>is.", MARKS)
    message = post(served, skip_special_tokens=False)["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("One.", "Par<|im_start|>is.")
    assert post(served)["choices"][0]["message"]["content"] == "Paris."


def test_usage_has_details_of_both_kinds(thinking):
    usage = post(thinking("<think>\nOne.\n</think>\n\nParis."))["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


def test_a_chats_prompt_is_cut_with_its_tools_in_it(hermes):
    served = hermes("Hello")
    post(served, tools=[WEATHER])
    post(served, tools=[WEATHER], truncate_prompt_tokens=7)
    whole, cut = (submission.prompt for submission in served.engine.submissions)
    assert cut == whole[-7:]


def test_a_prompts_scores_come_beside_a_grammar(serve):
    served = serve("yes")
    answer = post(served, "/v1/completions", echo=True, logprobs=1, structured_outputs={"choice": ["yes", "no"]})
    (submission,) = served.engine.submissions
    assert submission.grammar is not None
    assert submission.prompt_logprobs == 1
    assert answer["choices"][0]["text"] == "hiyes"
    assert answer["choices"][0]["logprobs"]["token_logprobs"][0] is None


def test_tokenize_counts_tools_as_a_chat_does(hermes):
    served = hermes("Hello")
    for tools in ([], [WEATHER, NOW]):
        tokens = post(served, "/tokenize", messages=QUESTION, tools=tools)["tokens"]
        post(served, tools=tools)
        assert tokens == list(served.engine.submissions[-1].prompt)
    response = httpx.post(served.url + "/tokenize", json={"prompt": "hi", "tools": [WEATHER]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"


def test_tokenize_refuses_tools_that_the_model_does_not_take(serve):
    response = httpx.post(serve("x").url + "/tokenize", json={"messages": QUESTION, "tools": [WEATHER]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")


@pytest.mark.parametrize("path", ROUTES)
def test_the_models_defaults_count_on_every_route(serve, path):
    defaults = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20, min_p=0.01, repetition_penalty=1.1)
    served = serve("x", defaults=defaults)
    post(served, path)
    post(served, path, temperature=0.25, top_p=0, top_k=3)
    first, second = (submission.sampling for submission in served.engine.submissions)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.6, 0.95, 20, 0.01)
    assert first.repetition_penalty == second.repetition_penalty == 1.1
    assert (second.temperature, second.top_p, second.top_k, second.min_p) == (0.25, 0, 3, 0.01)


@pytest.mark.parametrize("path", ROUTES)
def test_request_ids_and_pages_of_named_origins_are_served_on_every_route(serve, path):
    served = serve("x", cors_allowed_origins=["https://chat.example"])
    headers = {"origin": "https://chat.example", "x-request-id": "mine-1"}
    for body in (ROUTES[path], {"nonsense": 1}):
        answer = httpx.post(served.url + path, json={"model": "tiny", **body}, headers=headers)
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["access-control-allow-origin"] == "https://chat.example"
    asked = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "x-api-key,anthropic-version,content-type"
    assert httpx.options(served.url + path, headers=asked).status_code == 200


@pytest.mark.parametrize("special", [(), MARKS], ids=["text", "special tokens"])
def test_a_message_names_the_stop_sequence_of_marks_and_text(thinking, special):
    served = thinking("<think>\nOne.\n</think>\n\nParis.", special)
    for stop in ("</think>\n\nPar", "</think>"):
        answer = post(served, "/v1/messages", stop_sequences=[stop])
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
