"""What the package llm-comply, written by others, finds of OpenAI's chat, Open Responses and Anthropic's messages."""

from __future__ import annotations

import dataclasses
from importlib import resources

import pytest
from llm_comply.config import ComplianceConfig
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.tests.anthropic import ANTHROPIC_TESTS
from llm_comply.tests.open_responses import OPEN_RESPONSES_TESTS
from llm_comply.tests.openai_chat import OPENAI_CHAT_TESTS
from support import chat_templates
from support.scripted_engine import saying
from support.tool_model import codec_of

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "San Francisco"}}\n</tool_call>'
# Of each suite: its tests, its schemas, the tests that do not pass, since only text is served, and those that it skips
# unless the model's name is one of OpenAI's or Anthropic's.
SUITES = {
    "OpenAI chat": (OPENAI_CHAT_TESTS, "openai_chat.json", {"chat-image-input"}, {"chat-reasoning-summary"}),
    "Open Responses": (OPEN_RESPONSES_TESTS, "openresponses.json", {"image-input"}, {"reasoning-summary"}),
    "Anthropic": (ANTHROPIC_TESTS, "anthropic.json", {"anth-image-input"}, {"anth-thinking-display"}),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own use of jsonschema
@pytest.mark.parametrize("suite", SUITES)
def test_all_but_images_passes(serve, suite):
    codec = codec_of(chat_templates.HERMES)

    def script(submission):
        """A model that calls where it must."""
        yield from codec.encode(CALL if submission.grammar is not None else "Hello there, friend.")
        yield 2

    served = serve(script, codec=codec, max_context_length=16384)
    tests, spec, images, skipped = SUITES[suite]
    results = run(served, tests, spec)
    failed = {result.id: result.errors for result in results if result.status.value == "failed"}
    assert set(failed) == images, failed
    assert {result.id for result in results if result.status.value == "skipped"} == skipped


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_thinks_passes_the_test_of_thinking_too(serve):
    codec = codec_of(chat_templates.HERMES + "{# <think> enable_thinking #}")
    served = serve(saying(codec, "<think>Hm.</think>It is 555."), codec=codec, max_context_length=16384)
    test = next(test for test in ANTHROPIC_TESTS if test.id == "anth-thinking-display")
    (result,) = run(served, [dataclasses.replace(test, skip_reason=None)], "anthropic.json")
    assert (result.status.value, result.errors) == ("passed", [])


def run(served, tests, spec):
    config = ComplianceConfig(base_url=f"{served.url}/v1", api_key="none", model="tiny", timeout=20)
    loader = SpecLoader(str(resources.files("llm_comply") / "specs" / spec))
    return Runner(config, tests, loader).run_all().results
