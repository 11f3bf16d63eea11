"""Convert a GGUF file, once and atomically, to a directory of safetensors, config and tokenizer.

    python -m languagepipes_node.weights.gguf_convert FILE --dtype bfloat16 --output DIR

Tensors are dequantised a few rows at a time with the gguf library and written as they come, so memory stays bounded
however large the model is: safetensors' own writer wants all tensors in memory (docs/decisions/0005-http-clients.md).
The directory appears complete or not at all. `converted_name` keys it by (digest, converter version, dtype).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors import SafetensorError, safe_open

from languagepipes_node.weights.directory import read_file_range
from languagepipes_node.weights.errors import BrokenFile, FileNotFoundAtSource, NoSpace, UnsupportedFile, WeightsError
from languagepipes_node.weights.gguf_config import Conversion, ConversionPlan, plan_conversion
from languagepipes_node.weights.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from languagepipes_node.weights.gguf_tokenizer import build_tokenizer
from languagepipes_node.weights.headers import ITEM_BYTES, build_header
from languagepipes_node.weights.index import SINGLE_FILE

CONVERTER_VERSION = 2
DTYPES = ("float32", "bfloat16", "float16")
_CHUNK_VALUES = 4 * 1024 * 1024  # 16 MiB of float32 at a time


def converted_name(digest: str, dtype: str) -> str:
    """The cache directory's name for a file with this SHA-256."""
    return f"{digest}-v{CONVERTER_VERSION}-{dtype}"


def converted_bytes(plan: ConversionPlan, dtype: str) -> int:
    """The size of model.safetensors' data."""
    return sum(_values(conversion.shape) for conversion in plan.tensors) * ITEM_BYTES[dtype]


def natural_dtype(header: GgufHeader) -> str:
    """What a file is converted to when the resource names no dtype: what it stores, or bfloat16 if quantised."""
    kinds = {tensor.quantization for tensor in header.tensors.values() if len(tensor.shape) > 1}
    for kind, dtype in ((GGMLQuantizationType.F32, "float32"), (GGMLQuantizationType.F16, "float16")):
        if kinds == {kind}:
            return dtype
    return "bfloat16"


def convert(file: Path, output: Path, *, dtype: str, progress: Callable[[int], None] = lambda nbytes: None) -> Path:
    """Write `output` unless it exists, and return it. progress: called with bytes written since the last call.

    Raises WeightsError; then nothing of `output` is left.
    """
    if output.exists():
        return output
    header, plan = inspect_gguf(file, dtype=dtype)
    vocabulary = plan.config["vocab_size"]
    tokenizer, tokenizer_config = build_tokenizer(header.metadata, vocabulary_size=vocabulary, file=file.name)
    tokenizer_config["model_max_length"] = plan.config["max_position_embeddings"]
    _check_quantizations(plan, file.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        _check_space(output.parent, converted_bytes(plan, dtype))
        partial.mkdir()
        _write_text(partial / "config.json", _json(plan.config))
        _write_text(partial / "generation_config.json", _json(plan.generation_config))
        _write_text(partial / "tokenizer.json", tokenizer)
        _write_text(partial / "tokenizer_config.json", _json(tokenizer_config))
        _write_weights(file, partial / SINGLE_FILE, plan, dtype, progress)
        _check_written(partial / SINGLE_FILE, plan)
        _sync_directory(partial)
        _put_in_place(partial, output)
    except OSError as error:
        raise NoSpace(f"{output.parent}: cannot write the converted model: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def inspect_gguf(file: Path, *, dtype: str | None) -> tuple[GgufHeader, ConversionPlan]:
    """Header and conversion of a file on this machine. dtype None: `natural_dtype`. Raises WeightsError."""
    try:
        file_bytes = file.stat().st_size
    except OSError as error:
        raise FileNotFoundAtSource(f"{file}: {error.strerror}; name a file that can be read") from error
    return inspect_gguf_ranges(
        lambda begin, end: read_file_range(file, begin, end),
        file_bytes=file_bytes,
        file=file.name,
        dtype=dtype,
    )


def inspect_gguf_ranges(
    read: Callable[[int, int], bytes], *, file_bytes: int, file: str, dtype: str | None
) -> tuple[GgufHeader, ConversionPlan]:
    """The same of a file somewhere else: only its header (and a few RoPE factors) are read."""

    def read_floats(tensor: GgufTensor) -> npt.NDArray[np.float32]:
        data = np.frombuffer(read(tensor.begin, tensor.begin + tensor.nbytes), dtype=np.uint8)
        return _dequantize(data, tensor.quantization)

    header = read_gguf_header(read, file_bytes=file_bytes, file=file)
    chosen = dtype or natural_dtype(header)
    if chosen not in DTYPES:
        raise UnsupportedFile(f"{file}: cannot be converted to {chosen!r}; dtypes are {', '.join(DTYPES)}")
    return header, plan_conversion(header, file=file, dtype=chosen, read_floats=read_floats)


def _check_quantizations(plan: ConversionPlan, file: str) -> None:
    for kind in {conversion.source.quantization for conversion in plan.tensors}:
        _, block_bytes = GGML_QUANT_SIZES[kind]
        try:
            dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
        except NotImplementedError as error:
            raise UnsupportedFile(
                f"{file}: {kind.name} tensors cannot be dequantised; use a file of another quantisation (Q8_0, Q4_K_M)"
            ) from error


def _write_weights(
    source: Path, target: Path, plan: ConversionPlan, dtype: str, progress: Callable[[int], None]
) -> None:
    header = build_header(
        {conversion.name: (dtype, conversion.shape) for conversion in plan.tensors},
        {"format": "pt", "converted_from": source.name},
    )
    with (
        source.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        target.open("wb") as out,
    ):
        out.write(header)
        for conversion in plan.tensors:
            for values in _chunks(mapped, conversion):
                data = _encode(values, dtype, conversion.name)
                out.write(data)
                progress(len(data))
        out.flush()
        os.fsync(out.fileno())


def _check_written(target: Path, plan: ConversionPlan) -> None:
    """Raises BrokenFile unless the safetensors library finds each tensor in its shape. Reads the header alone."""
    try:
        with safe_open(target, framework="numpy") as written:
            found = {name: tuple(written.get_slice(name).get_shape()) for name in written.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BrokenFile(f"{target.name}: the safetensors library cannot read what was converted: {error}") from error
    if found != {conversion.name: tuple(conversion.shape) for conversion in plan.tensors}:
        raise BrokenFile(f"{target.name}: the converted file does not hold the tensors that it should")


def _chunks(mapped: mmap.mmap, conversion: Conversion) -> Iterator[npt.NDArray[np.float32]]:
    """The tensor's values in order, a bounded number of rows at a time; each chunk holds whole heads if permuted."""
    tensor = conversion.source
    columns = tensor.shape[-1]
    if len(tensor.shape) == 1:
        # A vector is one row for the library; as a column it can be cut by heads (biases).
        vector = _dequantize(_bytes(mapped, tensor.begin, tensor.nbytes), tensor.quantization).reshape(-1, 1)
        yield _unpermute(vector, conversion.unpermute_heads)
        return
    rows, row_bytes = _values(conversion.shape) // columns, tensor.row_bytes
    step = max(1, _CHUNK_VALUES // columns)
    heads = conversion.unpermute_heads
    if heads:
        rows_per_head = rows // heads
        step = max(1, step // rows_per_head) * rows_per_head
    for first in range(0, rows, step):
        count = min(step, rows - first)
        data = _bytes(mapped, tensor.begin + (conversion.first_row + first) * row_bytes, count * row_bytes)
        values = _dequantize(data.reshape(count, row_bytes), tensor.quantization)
        yield _unpermute(values, count // rows_per_head if heads else 0)


def _unpermute(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """llama.cpp interleaves the two rotary halves of each head of q and k; put them one after the other again.

    The inverse of LlamaModel.permute in llama.cpp's convert_hf_to_gguf.py. values: [heads × head dim, columns].
    """
    if not heads:
        return values
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _bytes(mapped: mmap.mmap, begin: int, nbytes: int) -> npt.NDArray[np.uint8]:
    # A copy: an array over the map would keep it from being closed.
    return np.frombuffer(mapped[begin : begin + nbytes], dtype=np.uint8)


def _dequantize(data: npt.NDArray[np.uint8], kind: GGMLQuantizationType) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):  # wild scales give inf or nan, which _encode refuses
        return np.asarray(dequantize(data, kind), dtype=np.float32)


def _encode(values: npt.NDArray[np.float32], dtype: str, name: str) -> bytes:
    """Raw little-endian bytes in `dtype`, rounded to nearest even. Raises UnsupportedFile if out of range."""
    if not np.isfinite(values).all():
        raise UnsupportedFile(f"tensor {name}: holds values that are not finite; the file is damaged")
    if dtype == "float32":
        return values.astype("<f4", copy=False).tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = values.astype("<f2")
        if not np.isfinite(half).all():
            raise UnsupportedFile(f"tensor {name}: values beyond float16's 65504; set dtype: bfloat16")
        return half.tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def _values(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise NoSpace(
            f"{directory}: the converted model needs {needed_bytes / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; "
            "enlarge spec.cache.size"
        )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(partial: Path, output: Path) -> None:
    try:
        partial.rename(output)
    except OSError:
        if not output.is_dir():  # another process was faster: its result is the same
            raise
    _sync_directory(output.parent)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gguf_convert", description="Convert a GGUF file to safetensors.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        path = convert(arguments.file, arguments.output, dtype=arguments.dtype)
    except WeightsError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
