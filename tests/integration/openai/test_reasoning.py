"""Thinking apart from the answer, through the openai client."""

from __future__ import annotations

import httpx
import pytest
from support import chat_templates
from support.scripted_engine import saying
from support.tool_model import NOW, codec_of

QUESTION = [{"role": "user", "content": "Capital of France?"}]
# Qwen 3's habits: thinks unless told otherwise, keeps no thinking of earlier turns.
SWITCHED = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content.split('</think>')[-1] }}[end]{% endfor %}"
    "[assistant]{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
# Like R1: the prompt opens the thinking.
OPENED = "{% for message in messages %}[{{ message.role }}]{{ message.content }}[end]{% endfor %}[assistant]<think>\n"
# Like GLM 4.6 and later: earlier thinking is kept.
KEPT = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message.content }}[end]{% endfor %}[assistant]"
)
THOUGHT = "<think>\nIt is Paris.\n\nSurely.\n</think>\n\nParis."


def served_with(serve, template, text, special=(), **options):
    codec = codec_of(template, special)
    return serve(saying(codec, text), codec=codec, max_context_length=4096, **options)


def ask(served, stream=False, **parameters):
    """(thinking, content, finish reason, usage)"""
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = served.client.chat.completions.create(
        model="tiny", messages=parameters.pop("messages", QUESTION), stream=stream, **options, **parameters
    )
    if not stream:
        message = answer.choices[0].message
        thinking = getattr(message, "reasoning", None)
        assert getattr(message, "reasoning_content", None) == thinking
        return thinking, message.content, answer.choices[0].finish_reason, answer.usage
    chunks = list(answer)
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    thinking = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == thinking
    content = "".join(delta.content or "" for delta in deltas)
    return thinking or None, content, chunks[-2].choices[0].finish_reason, chunks[-1].usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("special", [(), ("</think>",)], ids=["text", "special token"])
def test_thinking_and_answer_come_apart_and_its_tokens_are_counted(serve, stream, special):
    served = served_with(serve, SWITCHED, THOUGHT, special)
    thinking, content, finish, usage = ask(served, stream)
    assert (thinking, content, finish) == ("It is Paris.\n\nSurely.", "Paris.", "stop")
    thought = len(served.codec.encode(THOUGHT[: THOUGHT.index("</think>") + len("</think>")]))
    assert usage.completion_tokens_details.reasoning_tokens == thought
    assert usage.completion_tokens == len(served.codec.encode(THOUGHT)) + 1


HELD = "\n</think>\n\nParis. It is not Rome. It is"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", [" now.", ""])
@pytest.mark.parametrize("opened", [False, True])
def test_thinkings_tokens_are_the_same_with_a_stop_string_that_holds_back_text(serve, stream, ending, opened):
    """All from within the thinking on may be the stop string's beginning."""
    text = THOUGHT[: THOUGHT.index("\n</think>")] + HELD
    text = text.removeprefix("<think>\n") if opened else text
    template = OPENED if opened else SWITCHED
    served = served_with(serve, template, text + ending)
    expected = ask(served, stream)[3].completion_tokens_details.reasoning_tokens
    assert 0 < expected < len(served.codec.encode(text))
    stop = f"{HELD} never"
    thinking, content, _, usage = ask(served, stream, stop=[stop])
    assert usage.completion_tokens_details.reasoning_tokens == expected
    assert (thinking, content) == (THOUGHT[8 : THOUGHT.index("\n</think>")], f"Paris. It is not Rome. It is{ending}")
    cut = ask(served, stream, stop=["is not Rome"])
    assert (cut[1], cut[3].completion_tokens_details.reasoning_tokens) == ("Paris. It ", expected)
    cut = ask(served, stream, stop=["\n</think>\n\nParis."])
    assert (cut[1], cut[2]) == ("", "stop")
    assert cut[3].completion_tokens_details.reasoning_tokens == cut[3].completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_to_a_prompt_that_opens_the_thinking_begins_with_it(serve, stream):
    served = served_with(serve, OPENED, "It is Paris.\n</think>\n\nParis.")
    assert ask(served, stream)[:3] == ("It is Paris.", "Paris.", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_that_is_cut_off_has_no_answer(serve, stream):
    served = served_with(serve, SWITCHED, THOUGHT)
    thinking, content, finish, usage = ask(served, stream, max_tokens=6)
    assert "It is Paris.".startswith(thinking)
    assert (content, finish) == ("", "length")
    assert usage.completion_tokens_details.reasoning_tokens == 6


def test_thinking_is_switched_off_by_effort_and_by_the_templates_variable(serve):
    served = served_with(serve, SWITCHED, "Paris.")

    def prompt(**parameters) -> str:
        assert ask(served, **parameters)[:2] == (None, "Paris.")
        return served.codec.decode(served.engine.submissions[-1].prompt)

    assert prompt().endswith("[assistant]")
    assert prompt(reasoning_effort="high").endswith("[assistant]")
    assert prompt(reasoning_effort="none").endswith("</think>\n\n")
    assert prompt(extra_body={"chat_template_kwargs": {"enable_thinking": False}}).endswith("</think>\n\n")
    body = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    response = httpx.post(f"{served.url}/v1/chat/completions", json={"model": "tiny", "messages": QUESTION, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "reasoning_effort"


@pytest.mark.parametrize(
    ("effort", "expected"), [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("xhigh", "high")]
)
def test_effort_reaches_a_template_that_reads_it(serve, effort, expected):
    template = "effort {{ reasoning_effort }} " + chat_templates.HARMONY
    served = served_with(serve, template, "<|channel|>final<|message|>Paris.")
    assert ask(served, reasoning_effort=effort)[1] == "Paris."
    assert served.codec.decode(served.engine.submissions[-1].prompt).startswith(f"effort {expected} ")
    described = httpx.get(f"{served.url}/openapi.json").json()["components"]["schemas"]["ChatCompletionRequest"]
    efforts = ["minimal", "low", "medium", "high", "xhigh", None]
    assert described["properties"]["reasoning_effort"]["enum"] == efforts


def test_effort_that_cannot_be_kept_is_refused(serve):
    served = served_with(serve, OPENED, "x</think>y")
    for effort in ("none", "low"):
        body = {"model": "tiny", "messages": QUESTION, "reasoning_effort": effort}
        response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (
            400, "reasoning_effort", "unsupported_parameter"
        )  # fmt: skip
        assert error["message"].endswith("leave it out.")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_harmonys_channels_are_told_apart_without_tools_too(serve, stream, special):
    marks = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"] if special else []
    text = "<|channel|>analysis<|message|>It is Paris.<|end|><|start|>assistant<|channel|>final<|message|>Paris."
    served = served_with(serve, chat_templates.HARMONY, text, marks)
    thinking, content, finish, usage = ask(served, stream)
    assert (thinking, content, finish) == ("It is Paris.", "Paris.", "stop")
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_earlier_thinking_goes_to_templates_that_keep_it_and_to_no_others(serve):
    history = [
        *QUESTION,
        {"role": "assistant", "content": "Paris.", "reasoning": "I know it.", "reasoning_content": "I know it."},
        {"role": "user", "content": "Sure?"},
    ]
    for template, kept in ((KEPT, True), (SWITCHED, False), (OPENED, False)):
        served = served_with(serve, template, "Yes.")
        ask(served, messages=history)
        prompt = served.codec.decode(served.engine.submissions[-1].prompt)
        assert ("I know it." in prompt) == kept


def test_thinking_comes_before_a_call(serve):
    template = chat_templates.HERMES + "{# <think> #}"
    text = '<think>I need the time. <tool_call></think>\n\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    served = served_with(serve, template, text)
    with served.client.chat.completions.stream(model="tiny", messages=QUESTION, tools=[NOW]) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls[0].function.name == "now"
    assert choice.message.reasoning == "I need the time. <tool_call>"


def test_a_model_that_does_not_think_counts_no_thinking(serve):
    served = serve("<think>x</think>Hello")
    thinking, content, _, usage = ask(served)
    assert (thinking, content) == (None, "<think>x</think>Hello")
    assert usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (OPENED, 'It is Paris.\n</think>\n\n{"a": 1}'),
        (SWITCHED, '<think>\nIt is Paris.\n</think>\n\n{"a": 1}'),
        (
            chat_templates.HARMONY,
            '<|channel|>analysis<|message|>It is Paris.<|end|><|start|>assistant<|channel|>final<|message|>{"a": 1}',
        ),
    ],
)
def test_what_must_match_is_the_answer_behind_the_thinking(serve, template, text):
    marks = [] if "<|channel|>" not in template else ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    served = served_with(serve, template, text, marks)
    thinking, content, _, _ = ask(served, response_format={"type": "json_object"})
    assert (thinking, content) == ("It is Paris.", '{"a": 1}')
    submission = served.engine.submissions[-1]
    state = submission.grammar.start(submission.stop_token_ids)
    for token in served.codec.encode(text):
        assert not state.mask()[token]
        state.accept(token)
    assert state.is_over or not state.mask()[2]


@pytest.mark.parametrize(
    "asked",
    [
        {"choice": ["Paris.", "Rome."]},
        {"regex": "[A-Z][a-z]+\\."},
        {"grammar": 'start: "Paris" TEXT\nTEXT: "."'},
        {"grammar": 'root ::= "Paris" "."'},
        {"json": {"const": "Paris."}},
    ],
)
def test_every_kind_of_constraint_may_stand_behind_thinking(serve, asked):
    said = '"Paris."' if "json" in asked else "Paris."
    text = f"<think>\nIt is Paris.\n</think>\n\n{said}"
    served = served_with(serve, SWITCHED, text)
    assert ask(served, extra_body={"structured_outputs": asked})[:2] == ("It is Paris.", said)
    submission = served.engine.submissions[-1]
    for answer, allowed in ((text, True), (said, True), (f"no {said}", False)):
        state = submission.grammar.start(submission.stop_token_ids)
        seen = []
        for token in served.codec.encode(answer):
            seen.append(not state.mask()[token])
            if not seen[-1]:
                break
            state.accept(token)
        assert all(seen) == allowed
