"""Quantities and sources, the two little languages in the resource."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from languagepipes_api.quantity import format_bytes, parse_quantity
from languagepipes_api.source import Source, absolute_source, parse_source


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0), ("1", 1), (7, 7), ("12Gi", 12 * 2**30), ("500M", 500_000_000), ("500Mi", 500 * 2**20),
        ("1e9", 10**9), ("1E9", 10**9), ("1e+3", 1000), ("1E", 10**18), ("2Ei", 2 * 2**60), ("1.5Gi", 3 * 2**29),
        (".5Ki", 512), ("1.", 1), ("3k", 3000), ("1Ti", 2**40), ("1P", 10**15),
        # a fraction of a byte counts as a byte, as in Kubernetes
        ("0.1", 1), ("1.0000000001k", 1001),
    ],
)  # fmt: skip
def test_a_quantity_is_read_as_kubernetes_reads_it(text: str | int, amount: int) -> None:
    assert parse_quantity(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 Gi", "12GB", "12gi", "12KI", "3K", "100m", "-1", "+1", "1e", "1e-3", "1e100",
     "٣", "0x10", "1\n", "Gi", ".",
     "1" * 33, -1, True],
)  # fmt: skip
def test_anything_else_is_refused_with_the_value_and_examples(text: str | int) -> None:
    with pytest.raises(ValueError, match="is no amount of memory; write it like 12Gi, 500M or 1e9"):
        parse_quantity(text)


@given(st.decimals(0, 10**6, places=3), st.sampled_from(["", "k", "M", "Ki", "Gi"]))
def test_a_quantity_is_exact_and_rounded_up(mantissa: Decimal, suffix: str) -> None:
    multiplier = {"": 1, "k": 1000, "M": 1000**2, "Ki": 1024, "Gi": 1024**3}[suffix]
    exact = mantissa * multiplier

    assert 0 <= parse_quantity(f"{mantissa:f}{suffix}") - exact < 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (2**20 - 1, "1 MiB"), (12_992_276_070, "12.1 GiB"),
     (8 * 2**30, "8 GiB"), (2**70, "1024 EiB")],
)  # fmt: skip
def test_bytes_are_shown_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://Qwen/Qwen3-8B", Source("hf", "Qwen/Qwen3-8B", "")),
        ("hf://a/b/q/m.Q4.gguf", Source("hf", "a/b", "q/m.Q4.gguf")),
        ("pvc://claim", Source("pvc", "claim", "")),
        ("pvc://claim/a/b", Source("pvc", "claim", "a/b")),
        ("pvc://claim/.cache/huggingface/hub/x", Source("pvc", "claim", ".cache/huggingface/hub/x")),
        ("https://host:8443/a/b", Source("https", "host:8443", "a/b")),
        ("file:///models/x", Source("file", "", "/models/x")),
        ("file://../x.gguf", Source("file", "", "../x.gguf")),
    ],
)
def test_a_source_is_taken_apart_and_put_together_again(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert str(source) == text


@pytest.mark.parametrize(
    "text",
    ["", "a", "hf://", "hf://a", "hf://a/b/c", "hf://a/..", "pvc://", "https://", "file://", "ftp://a/b", "hf://a/b\n",
     "https://host/x#y", "https://u@host/x", "pvc://claim/../x", "pvc://claim/a/./x", "pvc://claim/.../x"],
)  # fmt: skip
def test_anything_else_is_no_source(text: str) -> None:
    with pytest.raises(ValueError, match="://"):
        parse_source(text)


def test_a_relative_file_is_seen_from_the_directory_and_other_sources_stay() -> None:
    assert absolute_source("file://../x", Path("/a/b")) == "file:///a/x"
    assert absolute_source("file:///y", Path("/a/b")) == "file:///y"
    assert absolute_source("hf://a/b", Path("/a/b")) == "hf://a/b"
