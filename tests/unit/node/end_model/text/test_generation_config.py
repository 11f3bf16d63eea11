"""Defaults for sampling in a model's generation_config.json."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from languagepipes_node.end_model.text import SamplingDefaults, TokenizerError


def read(**config: Any) -> SamplingDefaults:
    return SamplingDefaults.read({"generation_config.json": json.dumps(config).encode()}.__getitem__)


def test_what_the_makers_of_a_model_recommend_is_read() -> None:
    # Qwen3-8B's file, with two more of the parameters.
    found = read(
        bos_token_id=151643,
        do_sample=True,
        eos_token_id=[151645, 151643],
        temperature=0.6,
        top_k=20,
        top_p=0.95,
        repetition_penalty=1.05,
        max_new_tokens=2048,
        transformers_version="4.51.0",
    )
    assert found == SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05, max_tokens=2048)


def test_without_a_file_or_its_values_the_defaults_are_openais() -> None:
    assert SamplingDefaults.read({}.__getitem__) == read(temperature=None) == SamplingDefaults()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", 2.5),
        ("top_p", 1.5),
        ("top_k", 0.5),
        ("top_k", -2),
        ("min_p", [0.1]),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-38),
        ("repetition_penalty", 1e39),
        ("max_new_tokens", 0),
    ],
)
def test_a_value_that_no_request_could_have_is_left_out_and_reported(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert read(**{name: value}) == SamplingDefaults()
    assert f"generation_config.json: {name} is {value!r}" in caplog.text


def test_a_file_that_is_no_object_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"generation_config\.json holds a JSON list"):
        SamplingDefaults.read({"generation_config.json": b"[]"}.__getitem__)
