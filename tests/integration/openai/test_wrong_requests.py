# ruff: noqa: E501 (a table's row is read as one line)
"""What a client sees of a wrong request: the exact status and error object. Nothing reaches the engine."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from support.refusals import refusal

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
GOOD_CHAT = {"model": "tiny", "messages": HI}
GOOD_TEXT = {"model": "tiny", "prompt": "hi"}
UNSUPPORTED = "is not supported by this server: leave it out"

# (name, path, what is changed in a good request, param, code, message or its beginning)
WRONG_VALUES = [
    ("no model", CHAT, {"model": None}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
    ("model a number", CHAT, {"model": 3}, "model", "invalid_type", "'model' must be a valid string, got 3."),
    ("no messages", CHAT, {"messages": None}, "messages", "missing_required_parameter", "Missing required parameter: 'messages'."),
    ("messages a string", CHAT, {"messages": "hi"}, "messages", "invalid_type", "'messages' is a JSON string, expected a list of messages."),
    ("messages empty", CHAT, {"messages": []}, "messages", "invalid_value", "'messages' holds 0 messages, expected 1 to 4096."),
    ("message a string", CHAT, {"messages": ["hi"]}, "messages[0]", "invalid_type", "'messages[0]' is a JSON string, expected a message object."),
    ("no role", CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter", "Missing required parameter: 'messages[0].role'."),
    ("unknown role", CHAT, {"messages": [*HI, {"role": "owner", "content": "hi"}]}, "messages[1].role", "invalid_value", "'messages[1].role' must be one of system, developer, user, assistant, tool."),
    ("role a list", CHAT, {"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role", "invalid_value", "'messages[0].role' must be one of"),
    ("function role", CHAT, {"messages": [{"role": "function", "content": "4", "name": "a"}]}, "messages[0].role", "unsupported_parameter", "Messages of role 'function' are not supported: send role 'tool' with a 'tool_call_id'."),
    ("no content", CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "Missing required parameter: 'messages[0].content'."),
    ("content null", CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content", "missing_required_parameter", "Missing required parameter: 'messages[0].content'."),
    ("content a number", CHAT, {"messages": [{"role": "user", "content": 4}]}, "messages[0].content", "invalid_type", "'messages[0].content' is a JSON number, expected a string or a list of text parts."),
    ("content empty list", CHAT, {"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value", "'messages[0].content' is empty, expected a string or at least one text part."),
    ("content an image", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]}, "messages[0].content[0].type", "unsupported_parameter", "Content parts of type 'image_url' are not supported by this server, only 'text'."),
    ("part without text", CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "missing_required_parameter", "Missing required parameter: 'messages[0].content[0].text'."),
    ("part with more", CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache": 1}]}]}, "messages[0].content[0].cache", "unknown_parameter", "Unknown parameter: 'messages[0].content[0].cache'."),
    ("tool calls", CHAT, {"messages": [{"role": "user", "content": "a", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls", "unsupported_parameter", "'tool_calls' of a message is not supported by this server."),
    ("a name", CHAT, {"messages": [{"role": "user", "content": "a", "name": 3}]}, "messages[0].name", "invalid_type", "'messages[0].name' is a JSON number, expected a string."),
    ("a cache mark", CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": 1}]}]}, "messages[0].content[0].cache_control", "invalid_type", "'messages[0].content[0].cache_control' is a JSON number, expected an object."),
    ("message typo", CHAT, {"messages": [{"role": "user", "contents": "a"}]}, "messages[0].contents", "unknown_parameter", "Unknown parameter: 'messages[0].contents'. Did you mean 'content'?"),
    ("temperature high", CHAT, {"temperature": 2.5}, "temperature", "invalid_value", "'temperature' must be less than or equal to 2, got 2.5."),
    ("temperature negative", CHAT, {"temperature": -1}, "temperature", "invalid_value", "'temperature' must be greater than or equal to 0, got -1."),
    ("temperature a string", CHAT, {"temperature": "hot"}, "temperature", "invalid_type", "'temperature' must be a valid number, got a JSON string."),
    ("temperature a boolean", CHAT, {"temperature": True}, "temperature", "invalid_type", "'temperature' must be a valid number, got True."),
    ("top_p negative", CHAT, {"top_p": -0.1}, "top_p", "invalid_value", "'top_p' must be greater than or equal to 0, got -0.1."),
    ("top_k", CHAT, {"top_k": -2}, "top_k", "invalid_value", "'top_k' must be greater than or equal to -1, got -2."),
    ("min_p", CHAT, {"min_p": 1.1}, "min_p", "invalid_value", "'min_p' must be less than or equal to 1, got 1.1."),
    ("penalty", CHAT, {"presence_penalty": 3}, "presence_penalty", "invalid_value", "'presence_penalty' must be less than or equal to 2, got 3."),
    ("max_tokens zero", CHAT, {"max_tokens": 0}, "max_tokens", "invalid_value", "'max_tokens' must be greater than or equal to 1, got 0."),
    ("max_tokens half", CHAT, {"max_tokens": 1.5}, "max_tokens", "invalid_type", "'max_tokens' must be a valid integer, got 1.5."),
    ("two limits", CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value", "'max_tokens' is 3 and 'max_completion_tokens' is 4: send one of them."),
    ("n zero", CHAT, {"n": 0}, "n", "invalid_value", "'n' must be greater than or equal to 1, got 0."),
    ("n large", CHAT, {"n": 129}, "n", "invalid_value", "'n' must be less than or equal to 128, got 129."),
    ("stream a string", CHAT, {"stream": "yes"}, "stream", "invalid_type", "'stream' must be a valid boolean, got a JSON string."),
    ("stream options alone", CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "'stream_options' is only allowed when 'stream' is true."),
    ("stream options typo", CHAT, {"stream": True, "stream_options": {"includeusage": True}}, "stream_options.includeusage", "unknown_parameter", "Unknown parameter: 'stream_options.includeusage'. Did you mean 'include_usage'?"),
    ("stop number", CHAT, {"stop": 3}, "stop", "invalid_type", "'stop' must be a string or a list of strings."),
    ("stop empty", CHAT, {"stop": ["a", ""]}, "stop", "invalid_value", "A string of 'stop' has 0 characters, expected 1 to 512."),
    ("stop many", CHAT, {"stop": ["a"] * 65}, "stop", "invalid_value", "'stop' holds 65 strings, at most 64 are accepted."),
    ("stop large", CHAT, {"stop": ["a" * 512] * 17}, "stop", "invalid_value", "The strings of 'stop' have 8704 characters together, at most 8192 are accepted."),
    ("seed large", CHAT, {"seed": 2**63}, "seed", "invalid_value", "'seed' must be less than or equal to 9223372036854775807, got"),
    ("logit_bias value", CHAT, {"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value", "'logit_bias.5' must be less than or equal to 100, got 101."),
    ("logit_bias key", CHAT, {"logit_bias": {"a": 1}}, "logit_bias", "invalid_value", "'logit_bias' has a key that is no token id, expected 0 to 400."),
    ("logit_bias id", CHAT, {"logit_bias": {"401": 1}}, "logit_bias", "invalid_value", "'logit_bias' has a key that is no token id, expected 0 to 400."),
    ("logprobs a number", CHAT, {"logprobs": 3}, "logprobs", "invalid_type", "'logprobs' must be a valid boolean, got 3."),
    ("top_logprobs alone", CHAT, {"top_logprobs": 3}, "top_logprobs", "invalid_value", "'top_logprobs' is only allowed when 'logprobs' is true."),
    ("top_logprobs many", CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value", "'top_logprobs' must be less than or equal to 20, got 21."),
    ("typo", CHAT, {"temprature": 1}, "temprature", "unknown_parameter", "Unknown parameter: 'temprature'. Did you mean 'temperature'?"),
    ("unknown", CHAT, {"zzz": 1}, "zzz", "unknown_parameter", "Unknown parameter: 'zzz'."),
    ("a prompt in a chat", CHAT, {"prompt": "hi"}, "prompt", "unknown_parameter", "Unknown parameter: 'prompt'."),
    ("tools", CHAT, {"tools": [{"type": "function", "function": {"name": "now"}}]}, "tools", "unsupported_parameter", "'tools' are not supported by this model: its chat template leaves them out. Leave them out too, or serve a model whose template knows tools."),
    ("tool_choice", CHAT, {"tool_choice": "required"}, "tool_choice", "invalid_value", "'tool_choice' asks for a call of a tool, and there are no 'tools': send some."),
    ("functions", CHAT, {"functions": [{}]}, "functions", "unsupported_parameter", f"The parameter 'functions' {UNSUPPORTED}, or send []."),
    ("audio", CHAT, {"audio": {"voice": "x"}}, "audio", "unsupported_parameter", f"The parameter 'audio' {UNSUPPORTED}."),
    ("modalities", CHAT, {"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter", f"The parameter 'modalities' {UNSUPPORTED}"),
    ("prediction", CHAT, {"prediction": {}}, "prediction", "unsupported_parameter", f"The parameter 'prediction' {UNSUPPORTED}."),
    ("store", CHAT, {"store": True}, "store", "unsupported_parameter", f"The parameter 'store' {UNSUPPORTED}, or send false."),
    ("service tier", CHAT, {"service_tier": "flex"}, "service_tier", "unsupported_parameter", f"The parameter 'service_tier' {UNSUPPORTED}"),
    ("reasoning effort", CHAT, {"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter", "'reasoning_effort' 'low' is not known to the model's chat template: send one of none."),
    ("repetition penalty zero", CHAT, {"repetition_penalty": 0}, "repetition_penalty", "invalid_value", "'repetition_penalty' must be greater than or equal to 0.01, got 0."),
    ("repetition penalty near zero", TEXT, {"repetition_penalty": 1e-50}, "repetition_penalty", "invalid_value", "'repetition_penalty' must be greater than or equal to 0.01, got 1e-50."),
    ("repetition penalty large", CHAT, {"repetition_penalty": 101}, "repetition_penalty", "invalid_value", "'repetition_penalty' must be less than or equal to 100, got 101."),
    ("min_tokens negative", CHAT, {"min_tokens": -1}, "min_tokens", "invalid_value", "'min_tokens' must be greater than or equal to 0, got -1."),
    ("min_tokens beyond the answer", CHAT, {"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value", "'min_tokens' is 5, and the answer has at most 4 tokens: lower it."),
    ("min_tokens beyond the default", TEXT, {"min_tokens": 17}, "min_tokens", "invalid_value", "'min_tokens' is 17, and the answer has at most 16 tokens: lower it."),
    ("stop token unknown", CHAT, {"stop_token_ids": [401]}, "stop_token_ids", "invalid_value", "'stop_token_ids' holds token id 401, expected 0 to 400."),
    ("stop token negative", CHAT, {"stop_token_ids": [3, -1]}, "stop_token_ids[1]", "invalid_value", "'stop_token_ids[1]' must be greater than or equal to 0, got -1."),
    ("stop token a string", CHAT, {"stop_token_ids": ["a"]}, "stop_token_ids[0]", "invalid_type", "'stop_token_ids[0]' must be a valid integer, got a JSON string."),
    ("stop tokens many", CHAT, {"stop_token_ids": [3] * 257}, "stop_token_ids", "invalid_value", "'stop_token_ids' List should have at most 256 items"),
    ("skip_special_tokens a number", CHAT, {"skip_special_tokens": 1}, "skip_special_tokens", "invalid_type", "'skip_special_tokens' must be a valid boolean, got 1."),
    ("truncate to nothing", CHAT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value", "'truncate_prompt_tokens' is 0, expected -1 (as many as fit) or 1 to 64."),
    ("truncate beyond the context", TEXT, {"truncate_prompt_tokens": 65}, "truncate_prompt_tokens", "invalid_value", "'truncate_prompt_tokens' is 65, expected -1 (as many as fit) or 1 to 64."),
    ("priority", CHAT, {"priority": 1}, "priority", "unsupported_parameter", "'priority' is not taken by this server, where clients take turns: leave it out, send 0, or set spec.server.schedulingPolicy to priority."),
    ("priority a fraction", TEXT, {"priority": 0.5}, "priority", "invalid_type", "'priority' must be a valid integer, got 0.5."),
    ("priority large", TEXT, {"priority": 2**31}, "priority", "invalid_value", "'priority' must be less than or equal to 2147483647, got 2147483648."),
    ("prompt_logprobs of all tokens", TEXT, {"prompt_logprobs": -1}, "prompt_logprobs", "invalid_value", "'prompt_logprobs' must be greater than or equal to 0, got -1."),
    ("prompt_logprobs many", CHAT, {"prompt_logprobs": 21}, "prompt_logprobs", "invalid_value", "'prompt_logprobs' must be less than or equal to 20, got 21."),
    ("prompt_logprobs a boolean", CHAT, {"prompt_logprobs": True}, "prompt_logprobs", "invalid_type", "'prompt_logprobs' must be a valid integer, got True."),
    ("prompt_logprobs in a stream", CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "invalid_value", "'prompt_logprobs' is not available when 'stream' is true."),
    ("verbosity", CHAT, {"verbosity": "loud"}, "verbosity", "invalid_value", "'verbosity' must be 'low', 'medium' or 'high'"),
    ("metadata", CHAT, {"metadata": {"a": 1}}, "metadata.a", "invalid_type", "'metadata.a' must be a valid string, got 1."),
    ("metadata large", CHAT, {"metadata": {str(key): "" for key in range(17)}}, "metadata", "invalid_value", "'metadata' Dictionary should have at most 16 items"),
    ("template variable", CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking", "invalid_value", "'chat_template_kwargs.enable_thinking' is not read by the model's chat template: leave it out."),
    ("template's messages", CHAT, {"chat_template_kwargs": {"messages": "a"}}, "chat_template_kwargs.messages", "invalid_value", "'chat_template_kwargs.messages' cannot be set: the server gives it to the template."),
    ("template list", CHAT, {"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs.a", "invalid_type", "'chat_template_kwargs.a' must be"),
    ("no prompt", TEXT, {"prompt": None}, "prompt", "missing_required_parameter", "Missing required parameter: 'prompt'."),
    ("prompt empty", TEXT, {"prompt": ""}, "prompt", "invalid_value", "The prompt holds no tokens, at least one is needed."),
    ("prompts empty", TEXT, {"prompt": []}, "prompt", "invalid_value", "'prompt' is empty, expected a string"),
    ("prompts mixed", TEXT, {"prompt": ["a", 3]}, "prompt", "invalid_type", "'prompt' must be a string, a list of strings"),
    ("prompt an object", TEXT, {"prompt": {"text": "a"}}, "prompt", "invalid_type", "'prompt' is a JSON object, expected a string"),
    ("token id", TEXT, {"prompt": [5, 401]}, "prompt", "invalid_value", "'prompt' holds token id 401, expected 0 to 400."),
    ("negative token id", TEXT, {"prompt": [[-1]]}, "prompt", "invalid_value", "'prompt' holds token id -1, expected 0 to 400."),
    ("too many prompts", TEXT, {"prompt": ["a"] * 129}, "prompt", "invalid_value", "'prompt' holds 129 prompts, at most 128 are accepted."),
    ("too many answers", TEXT, {"prompt": ["a"] * 65, "n": 2}, "n", "invalid_value", "'n' asks for 2 answers to each of 65 prompts, at most 128 in all."),
    ("echo in a chat", CHAT, {"echo": True}, "echo", "unsupported_parameter", f"The parameter 'echo' {UNSUPPORTED}, or send false."),
    ("best_of in a chat", CHAT, {"best_of": 4}, "best_of", "unsupported_parameter", f"The parameter 'best_of' {UNSUPPORTED}, or send 1."),
    ("best_of below n", TEXT, {"best_of": 2, "n": 3}, "best_of", "invalid_value", "'best_of' is 2 and 'n' is 3: 'best_of' must be at least 'n'."),
    ("best_of streamed", TEXT, {"best_of": 2, "stream": True}, "best_of", "invalid_value", "'best_of' is 2 and 'n' is 1: an answer can only be streamed where they are the same."),
    ("best_of many", TEXT, {"best_of": 5}, "best_of", "invalid_value", "The request asks for 5 answers at once, this server generates at most 4."),
    ("suffix", TEXT, {"suffix": "end"}, "suffix", "unsupported_parameter", f"The parameter 'suffix' {UNSUPPORTED}, or send \"\"."),
    ("logprobs a boolean", TEXT, {"logprobs": True}, "logprobs", "invalid_type", "'logprobs' must be a valid integer, got True."),
    ("logprobs many", TEXT, {"logprobs": 6}, "logprobs", "invalid_value", "'logprobs' must be less than or equal to 5, got 6."),
    ("messages in text", TEXT, {"messages": HI}, "messages", "unknown_parameter", "Unknown parameter: 'messages'."),
    ("prompt too long", TEXT, {"prompt": [5] * 64}, "prompt", "context_length_exceeded", "This model's maximum context length is 64 tokens, and the prompt has 64, which leaves no room for an answer. Please shorten the prompt."),
    ("answer too long", TEXT, {"prompt": [5] * 60, "max_tokens": 5}, "max_tokens", "context_length_exceeded", "This model's maximum context length is 64 tokens. However, you requested 65 (60 in the prompt and 5 by 'max_tokens'). Please shorten the prompt or lower 'max_tokens'."),
    ("more than is admitted", CHAT, {"n": 5}, "n", "invalid_value", "The request asks for 5 answers at once, this server generates at most 4."),
]  # fmt: skip


@pytest.fixture
def small(serve):
    return serve("x", max_context_length=64, max_sequences=4, max_request_bytes=20_000)


def test_every_wrong_value_is_a_400_that_names_it(small):
    with httpx.Client(base_url=small.url) as client:
        for name, path, changes, param, code, message in WRONG_VALUES:
            good = GOOD_CHAT if path == CHAT else GOOD_TEXT
            response = client.post(path, json={**good, **changes})
            error = refusal(response, name)
            assert (error["param"], error["code"]) == (param, code), (name, error)
            assert error["message"].startswith(message), (name, error)
            if message.endswith("."):
                assert error["message"] == message, name
    assert small.engine.submissions == []


BAD_JSON = "The body is no valid JSON"
WRONG_BODIES = [
    (b"", BAD_JSON),
    (b"{", BAD_JSON),
    (b'{"model": "tiny", "temperature": NaN}', BAD_JSON),
    (b'{"model": "tiny", "temperature": 1e999}', BAD_JSON),
    (b'{"model": "\xff"}', BAD_JSON),
    (b'{"model": "\\ud800"}', BAD_JSON),
    (b"[" * 5000, BAD_JSON),
    (b"[]", "The body is a JSON array, expected an object."),
    (b"null", "The body is a JSON null, expected an object."),
]


def test_a_body_that_is_no_json_object_is_a_400(small):
    with httpx.Client(base_url=small.url, headers={"content-type": "application/json"}) as client:
        for body, message in WRONG_BODIES:
            for path in (CHAT, TEXT):
                response = client.post(path, content=body)
                assert response.status_code == 400, body
                error = response.json()["error"]
                assert error["message"].startswith(message)
                assert error["code"] in ("invalid_json", "invalid_type")


# (method, path, headers, body, status, code)
WRONG_ROUTES = [
    ("POST", CHAT, {"content-type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
    ("POST", CHAT, {"content-type": "multipart/form-data"}, b"{}", 415, "unsupported_media_type"),
    ("POST", CHAT, {"content-encoding": "gzip", "content-type": "application/json"}, b"{}", 415, "unsupported_media_type"),
    ("POST", CHAT, {"content-type": "application/json"}, b" " * 20_001, 413, "request_too_large"),
    ("POST", TEXT, {"content-type": "application/json"}, b" " * 20_001, 413, "request_too_large"),
    ("POST", CHAT, {}, json.dumps({**GOOD_CHAT, "model": "gpt-4"}).encode(), 404, "model_not_found"),
    ("POST", TEXT, {}, json.dumps({**GOOD_TEXT, "model": "gpt-4"}).encode(), 404, "model_not_found"),
    ("GET", "/v1/models/gpt-4", {}, b"", 404, "model_not_found"),
    ("GET", CHAT, {}, b"", 405, "method_not_allowed"),
    ("DELETE", "/v1/models", {}, b"", 405, "method_not_allowed"),
    ("POST", "/readyz", {}, b"", 405, "method_not_allowed"),
    ("POST", "/v1/embeddings", {}, b"{}", 404, "unknown_url"),
    ("GET", "/", {}, b"", 404, "unknown_url"),
    ("GET", "/docs", {}, b"", 404, "unknown_url"),
    ("GET", "/redoc", {}, b"", 404, "unknown_url"),
    ("POST", "/v1/chat/completions/", {}, b"{}", 404, "unknown_url"),
]  # fmt: skip


def test_wrong_routes_and_bodies_have_their_status_and_an_error_object(small):
    with httpx.Client(base_url=small.url) as client:
        for method, path, headers, body, status, code in WRONG_ROUTES:
            response = client.request(method, path, headers=headers, content=body)
            assert response.status_code == status, (method, path)
            assert response.headers["content-type"] == "application/json"
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", code), (method, path)
            if status == 405:
                assert response.headers["allow"]


def test_a_body_sent_in_chunks_is_bounded_too(small):
    parts = (b" " * 1000 for _ in range(1000))
    response = httpx.post(small.url + CHAT, content=parts, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_the_client_library_raises_what_its_users_expect(small):
    with pytest.raises(openai.BadRequestError) as bad:
        small.client.chat.completions.create(model="tiny", messages=HI, temperature=9)
    assert bad.value.code == "invalid_value"
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        small.client.chat.completions.create(model="other", messages=HI)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as streamed:
        small.client.chat.completions.create(model="tiny", messages=HI, stream=True, max_tokens=999)
    assert streamed.value.code == "context_length_exceeded"
