"""Fuzz the weight-file readers: any bytes end in an index, a conversion plan or a WeightsError, and nothing else.

python tests/fuzz/fuzz_weight_files.py [-runs=N] [-seed=N] [CORPUS_DIR]   (libFuzzer's options)
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["languagepipes_node"]):
    from languagepipes_node.weights.errors import BrokenFile, WeightsError
    from languagepipes_node.weights.gguf_convert import inspect_gguf_ranges
    from languagepipes_node.weights.gguf_tokenizer import build_tokenizer
    from languagepipes_node.weights.index import build_index

MAX_READ_BYTES = 1 << 20


def _reader(files: dict[str, bytes]):
    def read(name: str, begin: int, end: int) -> bytes:
        if not 0 <= begin <= end <= begin + MAX_READ_BYTES:
            raise AssertionError(f"reads [{begin}, {end}) of {len(files[name])} bytes")
        data = files[name][begin:end]
        if len(data) != end - begin:
            raise BrokenFile("short")
        return data

    return read


def read_any(data: bytes) -> None:
    """The first byte picks the reader."""
    kind, content = data[:1], data[1:]
    try:
        if kind < b"\x55":
            files = {"model.safetensors": content}
            index = build_index({"model.safetensors": len(content)}, _reader(files))
            for entry in index.tensors.values():
                if not 8 <= entry.begin <= entry.end <= len(content):
                    raise AssertionError("an accepted tensor lies outside its file")
        elif kind < b"\xaa":
            header, plan = inspect_gguf_ranges(
                lambda begin, end: _reader({"m": content})("m", begin, end),
                file_bytes=len(content),
                file="m",
                dtype="bfloat16",
            )
            build_tokenizer(header.metadata, vocabulary_size=plan.config["vocab_size"], file="m")
        else:
            first, _, second = content.partition(b"\0\0\0\0")
            files = {"model.safetensors.index.json": first, "one.safetensors": second}
            build_index({name: len(value) for name, value in files.items()}, _reader(files))
    except WeightsError:
        pass


def main() -> None:
    atheris.Setup(sys.argv, read_any)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
