"""Wrong weight files, each with the sentence that a user sees. Nothing here may crash or allocate what it claims."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.weights.gguf_convert import convert
from support.weight_files import gguf_bytes, info, key, safetensors, string, tensor, write_gguf_model

GOOD = {"a": tensor("F32", [2], 0, 8)}
DATA = b"\0" * 8
CUT = "it was cut short, fetch it again"
CONVERT = "publish the weights as .safetensors (safetensors' convert script does it) and name that repository"


def _zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": [1.0]}))
    return path.read_bytes()


SAFETENSORS: list[tuple[str, bytes, str, str]] = [
    (
        "empty",
        b"",
        "BrokenFile",
        f"model.safetensors: 0 bytes are too few for a safetensors file; {CUT}",
    ),
    (
        "cut inside the length",
        safetensors(GOOD, DATA)[:7],
        "BrokenFile",
        f"model.safetensors: 7 bytes are too few for a safetensors file; {CUT}",
    ),
    (
        "cut inside the header",
        safetensors(GOOD, DATA)[:30],
        "BrokenFile",
        f"model.safetensors: states a header of 61 bytes but the file has 30; {CUT}",
    ),
    (
        "cut inside the data",
        safetensors(GOOD, DATA)[:-1],
        "BrokenFile",
        "model.safetensors: tensor 'a' ends at byte 8 of a buffer of 7; the file was cut short, fetch it again",
    ),
    (
        "header length of 2^63",
        safetensors(GOOD, DATA, length=1 << 63),
        "BrokenFile",
        "model.safetensors: states a header of 9223372036854775808 bytes, more than the 33554432 allowed; "
        "this is no safetensors file",
    ),
    (
        "header length too short by one",
        safetensors(GOOD, DATA, length=60),
        "BrokenFile",
        "model.safetensors: the header is not a JSON object: Expecting ',' delimiter: line 1 column 61 (char 60)",
    ),
    (
        "no JSON",
        safetensors(b"{nonsense", DATA),
        "BrokenFile",
        "model.safetensors: the header is not a JSON object: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
    ),
    (
        "a JSON array",
        safetensors(b"[]", DATA),
        "BrokenFile",
        "model.safetensors: the header does not begin with '{'; this is no safetensors file",
    ),
    (
        "JSON nested without end",
        safetensors(b'{"a":' + b"[" * 200_000, DATA),
        "BrokenFile",
        "model.safetensors: the header is not a JSON object: RecursionError",
    ),
    (
        "no UTF-8",
        safetensors(b'{"\xff\xfe": 1}', DATA),
        "BrokenFile",
        "model.safetensors: the header is not a JSON object: UnicodeDecodeError",
    ),
    (
        "duplicate keys",
        safetensors(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            DATA,
        ),
        "BrokenFile",
        "model.safetensors: the header is not a JSON object: the key 'a' stands there twice",
    ),
    (
        "unknown dtype",
        safetensors({"a": tensor("Q4", [2], 0, 8)}, DATA),
        "UnsupportedFile",
        "model.safetensors: tensor 'a' has the dtype 'Q4'; known are BF16, BOOL, F16, F32, F64, F8_E4M3, F8_E5M2, "
        "F8_E8M0, I16, I32, I64, I8, U16, U32, U64, U8",
    ),
    (
        "a size that contradicts the shape",
        safetensors({"a": tensor("F32", [3], 0, 8)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' of shape [3] and float32 needs 12 bytes but states 8",
    ),
    (
        "a shape whose product overflows 64 bits",
        safetensors({"a": tensor("F32", [1 << 40, 1 << 40], 0, 8)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' of shape [1099511627776, 1099511627776] and float32 needs "
        "4835703278458516698824704 bytes but states 8",
    ),
    (
        "a negative extent",
        safetensors({"a": tensor("F32", [-2], 0, 8)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' has no shape of at most 8 whole numbers",
    ),
    (
        "an extent that is true",
        safetensors({"a": tensor("F32", [True, 2], 0, 8)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' has no shape of at most 8 whole numbers",
    ),
    (
        "nine dimensions",
        safetensors({"a": tensor("F32", [1] * 8 + [2], 0, 8)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' has no shape of at most 8 whole numbers",
    ),
    (
        "offsets that descend",
        safetensors({"a": tensor("F32", [2], 8, 0)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' has no ascending pair of data_offsets",
    ),
    (
        "a field too many",
        safetensors({"a": {**tensor("F32", [2], 0, 8), "run": "me"}}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'a' does not have exactly dtype, shape and data_offsets",
    ),
    (
        "overlap",
        safetensors({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [1], 4, 8)}, DATA),
        "BrokenFile",
        "model.safetensors: tensor 'b' overlaps 'a'",
    ),
    (
        "gap",
        safetensors({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}, b"\0" * 12),
        "BrokenFile",
        "model.safetensors: 4 bytes before tensor 'b' belong to no tensor",
    ),
    (
        "something hidden at the end",
        safetensors(GOOD, DATA + b"MZ\x90\0"),
        "BrokenFile",
        "model.safetensors: the last 4 bytes belong to no tensor",
    ),
    (
        "metadata that is no map of strings",
        safetensors({"__metadata__": {"a": 1}, **GOOD}, DATA),
        "BrokenFile",
        "model.safetensors: __metadata__ is not a map of strings",
    ),
    (
        "no tensor",
        safetensors({"__metadata__": {}}),
        "BrokenFile",
        "model.safetensors: no tensor in it",
    ),
    (
        "a pickle under another name",
        pickle.dumps({"a": [1.0] * 20}),
        "UnsupportedFile",
        f"model.safetensors: the content is a PyTorch pickle, whatever the name says; {CONVERT}",
    ),
    (
        "a GGUF under another name",
        gguf_bytes(),
        "UnsupportedFile",
        "model.safetensors: this is a GGUF file; name it with the suffix .gguf",
    ),
]


@pytest.mark.parametrize(
    ("content", "reason", "message"), [row[1:] for row in SAFETENSORS], ids=[r[0] for r in SAFETENSORS]
)
def test_a_wrong_safetensors_file_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, reason: str, message: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        SafetensorsDirectory(tmp_path)
    assert (caught.value.reason, str(caught.value)) == (reason, message)


def test_a_zipped_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(_zipped(tmp_path / "zip"))
    with pytest.raises(WeightsError, match="the content is a PyTorch pickle, whatever the name says"):
        SafetensorsDirectory(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_directory_of_pickles_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError) as caught:
        SafetensorsDirectory(tmp_path)
    assert caught.value.reason == "UnsupportedFile"
    assert (
        str(caught.value) == f"{name}: PyTorch pickles can run code when they are loaded and are never read; {CONVERT}"
    )


def _index(weight_map: object) -> str:
    return json.dumps({"weight_map": weight_map})


DIRECTORIES: list[tuple[str, dict[str, bytes | str], str, str]] = [
    (
        "shards without an index",
        {"a.safetensors": safetensors(GOOD, DATA), "b.safetensors": safetensors(GOOD, DATA)},
        "UnsupportedFile",
        "2 .safetensors files but no model.safetensors.index.json to say which belong to the model; add one",
    ),
    (
        "a shard that is missing",
        {"model.safetensors.index.json": _index({"a": "one.safetensors"})},
        "FileNotFoundAtSource",
        "model.safetensors.index.json names 'one.safetensors', which is not there; complete the source",
    ),
    (
        "a shard outside the directory",
        {"model.safetensors.index.json": _index({"a": "../../etc/passwd"})},
        "BrokenFile",
        "model.safetensors.index.json: tensor 'a' is said to be in '../../etc/passwd', no file name",
    ),
    (
        "a shard that is a pickle",
        {"model.safetensors.index.json": _index({"a": "pytorch_model.bin"})},
        "UnsupportedFile",
        f"pytorch_model.bin: PyTorch pickles can run code when they are loaded and are never read; {CONVERT}",
    ),
    (
        "a tensor that its shard lacks",
        {
            "model.safetensors.index.json": _index({"a": "one.safetensors", "b": "one.safetensors"}),
            "one.safetensors": safetensors(GOOD, DATA),
        },
        "BrokenFile",
        "model.safetensors.index.json promises tensor 'b' in one.safetensors, whose header lacks it",
    ),
    (
        "a tensor in two shards",
        {
            "model.safetensors.index.json": _index({"a": "one.safetensors", "b": "two.safetensors"}),
            "one.safetensors": safetensors(GOOD, DATA),
            "two.safetensors": safetensors(GOOD, DATA),
        },
        "BrokenFile",
        "tensor 'a' is in both one.safetensors and two.safetensors",
    ),
    (
        "an index without a map",
        {"model.safetensors.index.json": "[]"},
        "BrokenFile",
        "model.safetensors.index.json: not a JSON object",
    ),
    (
        "nothing at all",
        {"README.md": "hello"},
        "FileNotFoundAtSource",
        "there is no model.safetensors and no model.safetensors.index.json; name a source that holds the model as "
        "safetensors or GGUF",
    ),
]


@pytest.mark.parametrize(
    ("files", "reason", "message"), [row[1:] for row in DIRECTORIES], ids=[r[0] for r in DIRECTORIES]
)
def test_a_wrong_directory_is_refused_with_its_reason(
    tmp_path: Path, files: dict[str, bytes | str], reason: str, message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(WeightsError) as caught:
        SafetensorsDirectory(tmp_path)
    assert (caught.value.reason, str(caught.value)) == (reason, message)


def test_one_file_counts_and_an_index_beside_it_that_was_left_over_does_not(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(GOOD, DATA))
    (tmp_path / "model.safetensors.index.json").write_text(_index({"a": "one.safetensors", "b": "two.safetensors"}))
    index = SafetensorsDirectory(tmp_path).index
    assert {name: entry.file for name, entry in index.tensors.items()} == {"a": "model.safetensors"}


ARCHITECTURE = key("general.architecture", 8, string("llama"))
NAME_LENGTH = struct.pack("<Q", 1 << 40)

GGUF: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "BrokenFile", "m.gguf: 0 bytes are too few for a GGUF file; it was cut short"),
    (
        "wrong magic",
        gguf_bytes(magic=b"GGJT"),
        "BrokenFile",
        "m.gguf: begins with b'GGJT' instead of b'GGUF'; this is no GGUF file",
    ),
    (
        "a pickle under another name",
        pickle.dumps({"a": [1.0] * 20}),
        "UnsupportedFile",
        f"m.gguf: the content is a PyTorch pickle, whatever the name says; {CONVERT}",
    ),
    ("version 1", gguf_bytes(version=1), "UnsupportedFile", "m.gguf: GGUF version 1; versions 2 and 3 are read"),
    (
        "big-endian",
        gguf_bytes(version=3 << 24),
        "UnsupportedFile",
        "m.gguf: a big-endian GGUF file; convert it on a little-endian machine",
    ),
    (
        "wild counts",
        gguf_bytes(tensors=1 << 60, keys=1 << 60),
        "BrokenFile",
        "m.gguf: states 1152921504606846976 tensors and 1152921504606846976 metadata keys, more than the 131072 and "
        "4096 allowed",
    ),
    (
        "counts that the size denies",
        gguf_bytes(tensors=1000, keys=1),
        "BrokenFile",
        "m.gguf: states 1000 tensors and 1 metadata keys, which 32 bytes cannot hold; it was cut short",
    ),
    (
        "a key without end",
        gguf_bytes(metadata=(NAME_LENGTH + b"x" * 24,)),
        "BrokenFile",
        "m.gguf: a metadata key states a length of 1099511627776 bytes; at most 4096 are allowed",
    ),
    (
        "a string without end",
        gguf_bytes(metadata=(key("general.architecture", 8, NAME_LENGTH),)),
        "BrokenFile",
        "m.gguf: the value of 'general.architecture' states a length of 1099511627776 bytes; "
        "at most 16777216 are allowed",
    ),
    (
        "an array of 2^60 numbers",
        gguf_bytes(metadata=(key("x", 9, struct.pack("<IQ", 4, 1 << 60)),)),
        "BrokenFile",
        "m.gguf: the array 'x' states 1152921504606846976 items of at least 4 bytes, but the file has 15 bytes left; "
        "it was cut short",
    ),
    (
        "an array of arrays",
        gguf_bytes(metadata=(key("x", 9, struct.pack("<IQ", 9, 1)),)),
        "BrokenFile",
        "m.gguf: the array 'x' has items of the unknown type 9",
    ),
    (
        "an unknown value type",
        gguf_bytes(metadata=(key("x", 99, b""),)),
        "BrokenFile",
        "m.gguf: the metadata key 'x' has the unknown type 99",
    ),
    (
        "a key twice",
        gguf_bytes(metadata=(ARCHITECTURE, ARCHITECTURE)),
        "BrokenFile",
        "m.gguf: the metadata key 'general.architecture' stands there twice",
    ),
    (
        "an alignment of zero",
        gguf_bytes(metadata=(key("general.alignment", 4, struct.pack("<I", 0)),)),
        "BrokenFile",
        "m.gguf: general.alignment is 0, no power of two from 8 to 1048576",
    ),
    (
        "one part of several",
        gguf_bytes(metadata=(key("split.count", 2, struct.pack("<H", 3)),)),
        "UnsupportedFile",
        "m.gguf: one of 3 parts; join them first (llama-gguf-split --merge)",
    ),
    (
        "an unknown tensor type",
        gguf_bytes(infos=(info("t", (32,), kind=777),)),
        "UnsupportedFile",
        "m.gguf: tensor 't' has the unknown type 777",
    ),
    (
        "five dimensions",
        gguf_bytes(infos=(info("t", (1, 1, 1, 1, 1)),)),
        "BrokenFile",
        "m.gguf: tensor 't' states 5 dimensions; 1 to 4 are allowed",
    ),
    (
        "a row that is no multiple of its block",
        gguf_bytes(infos=(info("t", (33,), kind=8),), data=b"\0" * 64),
        "BrokenFile",
        "m.gguf: tensor 't' of Q8_0 cannot have the shape [33]",
    ),
    (
        "a tensor of an exabyte",
        gguf_bytes(infos=(info("t", (1 << 40, 1 << 18)),)),
        "BrokenFile",
        "m.gguf: tensor 't' of F32 and shape [262144, 1099511627776] needs 1152921504606846976 bytes from offset 0 on, "
        "but the file has 96; it was cut short",
    ),
    (
        "tensors that overlap",
        gguf_bytes(infos=(info("t", (16,)), info("u", (16,), offset=32)), data=b"\0" * 128),
        "BrokenFile",
        "m.gguf: tensor 'u' overlaps 't'",
    ),
    (
        "an offset out of line",
        gguf_bytes(infos=(info("t", (4,), offset=4),), data=b"\0" * 64),
        "BrokenFile",
        "m.gguf: tensor 't' begins at offset 4, no multiple of 32",
    ),
    (
        "another architecture",
        gguf_bytes(metadata=(key("general.architecture", 8, string("mamba")),)),
        "UnsupportedArchitecture",
        "m.gguf: the architecture 'mamba' is not served; served are llama, qwen3, qwen3moe",
    ),
    (
        "no architecture",
        gguf_bytes(),
        "BrokenFile",
        "m.gguf: the metadata key 'general.architecture' is missing; it must be a string",
    ),
    (
        "a layer count that is text",
        gguf_bytes(metadata=(ARCHITECTURE, key("llama.attention.head_count", 8, string("many")))),
        "BrokenFile",
        "m.gguf: the metadata key 'llama.attention.head_count' is 'many'; it must be a whole number",
    ),
]


@pytest.mark.parametrize(("content", "reason", "message"), [row[1:] for row in GGUF], ids=[r[0] for r in GGUF])
def test_a_wrong_gguf_file_is_refused_with_its_reason(
    tmp_path: Path, content: bytes, reason: str, message: str
) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    assert (caught.value.reason, str(caught.value)) == (reason, message)
    assert not (tmp_path / "out").exists()


def test_a_gguf_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "m.gguf"
    for length in [*range(0, 400, 7), *range(400, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as caught:
            convert(cut, tmp_path / "out", dtype="float32")
        assert caught.value.reason == "BrokenFile", length
        assert "cut short" in str(caught.value), length


MODELS: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (
        "more layers than tensors",
        lambda data: data.replace(b"llama.block_count\x04\0\0\0\x02", b"llama.block_count\x04\0\0\0\x7f"),
        "m.gguf: 20 tensors are too few for the 127 layers stated",
    ),
    (
        "another width",
        lambda data: data.replace(
            b"llama.feed_forward_length\x04\0\0\0\x40", b"llama.feed_forward_length\x04\0\0\0\x41"
        ),
        "m.gguf: tensor 'blk.0.ffn_gate.weight' has the shape [64, 32], the metadata implies [65, 32]",
    ),
    (
        "a tensor renamed",
        lambda data: data.replace(b"blk.1.ffn_up", b"blk.9.ffn_up"),
        "m.gguf: tensor 'blk.1.ffn_up.weight' is missing; the file is incomplete",
    ),
    (
        "a merge of unknown tokens",
        lambda data: data.replace(b"\x03\0\0\0\0\0\0\0t h", b"\x03\0\0\0\0\0\0\0? h"),
        "m.gguf: tokens and merges do not fit each other (Exception)",
    ),
    (
        "a token twice",
        lambda data: data.replace(b"<|unused3|>", b"<|unused4|>"),
        "m.gguf: tokenizer.ggml.tokens names a token twice",
    ),
    (
        "an unknown pre-tokenizer",
        lambda data: data.replace(b"smollm", b"qwerty"),
        "m.gguf: the pre-tokenizer 'qwerty' is not known (gpt-2, default, smollm, llama-bpe, llama3, llama-v3, "
        "smaug-bpe, qwen2, deepseek-r1-qwen are); use the model's safetensors repository",
    ),
    (
        "a sentencepiece vocabulary",
        lambda data: data.replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert"),
        "m.gguf: the tokenizer model 'bert' is not read from GGUF (only byte-level BPE, 'gpt2'); use the model's "
        "safetensors repository",
    ),
    (
        "weights that are not numbers",
        lambda data: data[:-4] + struct.pack("<f", float("nan")),
        "tensor model.norm.weight: holds values that are not finite; the file is damaged",
    ),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_a_gguf_that_contradicts_itself_is_refused_with_its_reason(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    write_gguf_model(tmp_path / "m.gguf")
    original = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(change(original))
    assert (tmp_path / "m.gguf").read_bytes() != original
    with pytest.raises(WeightsError) as caught:
        convert(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    assert str(caught.value) == message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_values_beyond_float16_ask_for_bfloat16(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:-4] + struct.pack("<f", 1e6))
    with pytest.raises(WeightsError, match=r"values beyond float16's 65504; set dtype: bfloat16"):
        convert(tmp_path / "m.gguf", tmp_path / "out", dtype="float16")


def test_lies_cost_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _, content, _, _ in SAFETENSORS:
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(WeightsError):
            SafetensorsDirectory(tmp_path)
    for _, content, _, _ in GGUF:
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(WeightsError):
            convert(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
