"""Convert a GGUF file, once and atomically, to a directory of safetensors, config and tokenizer.

    python -m languagepipes_node.weights.gguf_convert FILE --dtype bfloat16 --quantization asStored --output DIR

Tensors are dequantised a few rows at a time with the gguf library and written as they come; under a quantization they
are kept in their own types (`gguf_blocks`) or quantised anew (`quantised`). The directory appears complete or not at
all. `converted_name` keys it by (digest, converter version, dtype, quantization).
"""

from __future__ import annotations

import argparse
import mmap
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from languagepipes_api.plan import Quantization

from languagepipes_node.weights.converted import (
    Tensors,
    TensorWriter,
    complete_directory,
    encode,
    tensor_bytes,
    to_json,
    write_text,
)
from languagepipes_node.weights.directory import read_file_range
from languagepipes_node.weights.errors import FileNotFoundAtSource, UnsupportedFile, WeightsError
from languagepipes_node.weights.gguf_blocks import KEPT_TYPES, blocks_of, kept_kind
from languagepipes_node.weights.gguf_config import Conversion, ConversionPlan, plan_conversion
from languagepipes_node.weights.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from languagepipes_node.weights.gguf_tokenizer import build_tokenizer
from languagepipes_node.weights.index import SINGLE_FILE
from languagepipes_node.weights.quantised import Kind, kind_for, quantise

CONVERTER_VERSION = 2
DTYPES = ("float32", "bfloat16", "float16")
_CHUNK_VALUES = 4 * 1024 * 1024  # 16 MiB of float32 at a time


def converted_name(digest: str, dtype: str, quantization: Quantization = "none") -> str:
    """The cache directory's name for a file with this SHA-256."""
    return f"{digest}-v{CONVERTER_VERSION}-{dtype}" + ("" if quantization == "none" else f"-{quantization}")


def converted_bytes(plan: ConversionPlan, dtype: str, quantization: Quantization = "none") -> int:
    """The size of model.safetensors' data."""
    return sum(map(tensor_bytes, _written(plan, dtype, quantization).values()))


def quantised_kinds(plan: ConversionPlan, quantization: Quantization) -> dict[str, Kind]:
    """Which tensors are quantised, and how, by the Hub's names."""
    kinds = {conversion.name: _kind(conversion, quantization) for conversion in plan.tensors}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def types_note(plan: ConversionPlan, quantization: Quantization) -> str:
    """For people: which of the file's types `quantization` keeps and which it does not."""
    kept, others = Counter[str](), Counter[str]()
    for conversion in plan.tensors:
        kind = conversion.source.quantization.name
        if kind in ("F32", "F16", "BF16"):
            continue
        (kept if _kind(conversion, "asStored") is not None else others)[kind] += 1
    if quantization == "asStored":
        parts = [f"Kept as stored: {_counted(kept)}"]
        parts += [f"widened, since only {', '.join(KEPT_TYPES)} are kept: {_counted(others)}"] if others else []
        return "; ".join(parts) + "."
    if kept or others:
        return f"The file is quantised already ({_counted(kept + others)}), and is rounded twice; asStored keeps it."
    return ""


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _kind(conversion: Conversion, quantization: Quantization) -> Kind | None:
    if quantization == "asStored":
        return kept_kind(conversion.source.quantization, conversion.name, conversion.shape)
    return kind_for(conversion.name, conversion.shape, quantization)


def _written(plan: ConversionPlan, dtype: str, quantization: Quantization) -> Tensors:
    """What model.safetensors holds: (dtype, shape) by name."""
    written: dict[str, tuple[str, tuple[int, ...]]] = {}
    for conversion in plan.tensors:
        kind = _kind(conversion, quantization)
        if kind is None:
            written[conversion.name] = (dtype, conversion.shape)
        else:
            written |= kind.tensors(conversion.name, conversion.shape)
    return written


def natural_dtype(header: GgufHeader) -> str:
    """What a file is converted to when the resource names no dtype: what it stores, or bfloat16 if quantised."""
    kinds = {tensor.quantization for tensor in header.tensors.values() if len(tensor.shape) > 1}
    for kind, dtype in ((GGMLQuantizationType.F32, "float32"), (GGMLQuantizationType.F16, "float16")):
        if kinds == {kind}:
            return dtype
    return "bfloat16"


def convert(
    file: Path,
    output: Path,
    *,
    dtype: str,
    quantization: Quantization = "none",
    progress: Callable[[int], None] = lambda nbytes: None,
) -> Path:
    """Write `output` unless it exists, and return it. progress: called with bytes written since the last call.

    Raises WeightsError; then nothing of `output` is left.
    """
    if output.exists():
        return output
    header, plan = inspect_gguf(file, dtype=dtype)
    vocabulary = plan.config["vocab_size"]
    tokenizer, tokenizer_config = build_tokenizer(header.metadata, vocabulary_size=vocabulary, file=file.name)
    tokenizer_config["model_max_length"] = plan.config["max_position_embeddings"]
    if quantization == "asStored" and not quantised_kinds(plan, quantization):
        raise UnsupportedFile(
            f"{file.name}: spec.model.quantization is asStored, and no matrix has a type that is kept "
            f"({', '.join(KEPT_TYPES)}); set int8, int4 or none"
        )
    _check_quantizations(plan, file.name)
    with complete_directory(output, converted_bytes(plan, dtype, quantization)) as partial:
        write_text(partial / "config.json", to_json(plan.config))
        write_text(partial / "generation_config.json", to_json(plan.generation_config))
        write_text(partial / "tokenizer.json", tokenizer)
        write_text(partial / "tokenizer_config.json", to_json(tokenizer_config))
        _write_weights(file, partial / SINGLE_FILE, plan, dtype, quantization, progress)
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
    source: Path,
    target: Path,
    plan: ConversionPlan,
    dtype: str,
    quantization: Quantization,
    progress: Callable[[int], None],
) -> None:
    tensors = _written(plan, dtype, quantization)
    with (
        source.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        TensorWriter(target, tensors, source.name, progress) as out,
    ):
        for conversion in plan.tensors:
            kind = _kind(conversion, quantization)
            if kind is not None and quantization == "asStored":
                _write_kept(mapped, conversion, out)
                continue
            for values in _chunks(mapped, conversion):
                if kind is None:
                    out.append(conversion.name, encode(values, dtype, conversion.name))
                    continue
                for name, array in quantise(values, kind, conversion.name).arrays(conversion.name).items():
                    out.append(name, array)


def _write_kept(mapped: mmap.mmap, conversion: Conversion, out: TensorWriter) -> None:
    """Blocks of the file, their rows put in order: values, scales and minimums belong to one row each."""
    for data, heads in _row_bytes(mapped, conversion):
        blocks = blocks_of(data, conversion.source.quantization, conversion.name)
        for name, array in blocks.arrays(conversion.name).items():
            out.append(name, _unpermute(array, heads))


def _chunks(mapped: mmap.mmap, conversion: Conversion) -> Iterator[npt.NDArray[np.float32]]:
    """The tensor's values in order, a bounded number of rows at a time; each chunk holds whole heads if permuted."""
    tensor = conversion.source
    if len(tensor.shape) == 1:
        # A vector is one row for the library; as a column it can be cut by heads (biases).
        vector = _dequantize(_bytes(mapped, tensor.begin, tensor.nbytes), tensor.quantization).reshape(-1, 1)
        yield _unpermute(vector, conversion.unpermute_heads)
        return
    for data, heads in _row_bytes(mapped, conversion):
        yield _unpermute(_dequantize(data, tensor.quantization), heads)


def _row_bytes(mapped: mmap.mmap, conversion: Conversion) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
    """A matrix's rows as they are stored, uint8 [rows, bytes of a row], a bounded number at a time; and how many heads
    they are if rows are interleaved, else 0.
    """
    tensor = conversion.source
    columns = tensor.shape[-1]
    rows, row_bytes = _values(conversion.shape) // columns, tensor.row_bytes
    step = max(1, _CHUNK_VALUES // columns)
    heads = conversion.unpermute_heads
    if heads:
        rows_per_head = rows // heads
        step = max(1, step // rows_per_head) * rows_per_head
    for first in range(0, rows, step):
        count = min(step, rows - first)
        data = _bytes(mapped, tensor.begin + (conversion.first_row + first) * row_bytes, count * row_bytes)
        yield data.reshape(count, row_bytes), count // rows_per_head if heads else 0


Item = TypeVar("Item", bound=np.generic)


def _unpermute(values: npt.NDArray[Item], heads: int) -> npt.NDArray[Item]:
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
    with np.errstate(all="ignore"):  # wild scales give inf or nan, which encode refuses
        return np.asarray(dequantize(data, kind), dtype=np.float32)


def _values(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gguf_convert", description="Convert a GGUF file to safetensors.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--quantization", choices=get_args(Quantization), default="none")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        path = convert(arguments.file, arguments.output, dtype=arguments.dtype, quantization=arguments.quantization)
    except WeightsError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
