"""What a user reads about a resource that is wrong."""

from __future__ import annotations

import pytest
import yaml
from languagepipes_api.resource_errors import ResourceError
from languagepipes_api.spec import load_pipe, parse_pipe
from support.wrong_resources import GOOD, WRONG, Wrong


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_resource_is_refused_with_every_mistake_named(wrong: Wrong) -> None:
    with pytest.raises(ResourceError) as refused:
        load_pipe(yaml.safe_dump(wrong.resource), local=wrong.local)

    assert tuple(map(str, refused.value.problems)) == wrong.messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file has 0 YAML documents; it must have exactly one"),
        (GOOD + "---" + GOOD, "the file has 2 YAML documents; it must have exactly one"),
        ("- a", "a LanguagePipe is a mapping of apiVersion, kind, metadata and spec"),
        (
            "{apiVersion: v1, kind: Pod}",
            "apiVersion 'v1', kind 'Pod': expected apiVersion 'languagepipes.io/v1alpha1', kind 'LanguagePipe'",
        ),
        (
            GOOD.replace("v1alpha1", "v1"),
            "apiVersion 'languagepipes.io/v1', kind 'LanguagePipe': "
            "expected apiVersion 'languagepipes.io/v1alpha1', kind 'LanguagePipe'",
        ),
        (GOOD + "  stages: {count: 4}\n", "not YAML: line 8, column 3: the key 'stages' stands here twice; keep one"),
        ("a: &x 1\nb: *x", "not YAML: line 2, column 4: aliases (*name) are not supported; repeat the value"),
        ("[" * 60, "not YAML: line 1, column 51: nested more than 50 levels deep"),
        ("a: [1", "not YAML: line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        (
            "a: !!python/object/apply:os.system [id]",
            "not YAML: line 1, column 4: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: \x00", "not YAML: unacceptable character #x0000: special characters are not allowed in "
         '"<unicode string>", position 3'),
        ("a: 2026-99-99", "not YAML: month must be in 1..12; write such a value in quotes"),
        ("#" + "a" * 1_000_000, "the file has 1000001 characters, more than 1000000"),
        (GOOD.replace("{name: qwen3}", "{}"), "metadata.name: is required"),
        (GOOD.replace("{name: qwen3}", "{nam: a}"), "metadata.name: is required\n"
         "metadata.nam: unknown field; did you mean name?"),
        ("apiVersion: languagepipes.io/v1alpha1\nkind: LanguagePipe", "metadata: is required\nspec: is required"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_pipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(ResourceError) as refused:
        load_pipe(text, local=False)

    assert str(refused.value) == message


@pytest.mark.parametrize("data", [None, [], "x", 3, {"apiVersion": {}}, {1: 2}])
def test_data_of_any_shape_is_refused_and_never_crashes(data: object) -> None:
    with pytest.raises(ResourceError):
        parse_pipe(data, local=False)


def test_a_value_is_shown_cut_short() -> None:
    change = yaml.safe_load(GOOD)
    change["spec"]["model"]["dtype"] = "x" * 10_000

    with pytest.raises(ResourceError) as refused:
        parse_pipe(change, local=False)

    assert len(str(refused.value)) < 200
