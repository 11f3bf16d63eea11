"""A bounded, seeded run of the fuzz target; longer runs are started by hand."""

from __future__ import annotations

from pathlib import Path

from support.bounded_run import survives
from support.paths import ROOT
from support.weight_files import gguf_bytes, info, key, safetensors, string, tensor, write_gguf_model

TARGET = ROOT / "tests" / "fuzz" / "fuzz_weight_files.py"


def test_no_bytes_crash_the_weight_file_readers(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    good = safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("BF16", [2, 2], 8, 16)}, b"\0" * 16)
    (corpus / "safetensors").write_bytes(b"\0" + good)
    write_gguf_model(tmp_path / "tiny.gguf")
    (corpus / "gguf").write_bytes(b"\x60" + (tmp_path / "tiny.gguf").read_bytes())
    small = gguf_bytes(metadata=(key("general.architecture", 8, string("llama")),), infos=(info("t", (8,)),))
    (corpus / "small").write_bytes(b"\x60" + small)
    index = b'{"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}'
    (corpus / "index").write_bytes(b"\xff" + index + b"\0\0\0\0" + good)
    survives(TARGET, corpus, most_bytes=65536)
