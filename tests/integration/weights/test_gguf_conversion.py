"""A GGUF file becomes what transformers reads out of it: the same weights, the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from languagepipes_node.model.facts import read_facts
from languagepipes_node.weights.directory import SafetensorsDirectory
from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.weights.gguf_convert import convert, main
from safetensors.torch import load_file
from support.paths import SMOLLM2
from support.weight_files import HIDDEN, LAYERS, VOCABULARY, write_gguf_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

TRICKY = [
    "",
    " ",
    "Hello, world!",
    "  two spaces,\ttabs\t\tand\n\n\nnew lines  ",
    "1234567890 and 3.14159, 2026-11-24, 1e-05",
    "I'll, we've, they'd, it's, don't, 'S 'LL",
    "naïve café, Ångström, e\u0301 against \u00e9",
    "日本語のテキスト、中文字符 and 한국어",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 🤷🏽",
    "zero\u200bwidth \ufeffBOM and \x00 NUL and \x7f",
    "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|><|im_end|><|endoftext|> <|im_start |>",
    "def f(x):\n    return x ** 2  # comment\n\n\n\tif __name__ == '__main__':\r\n",
    "a" * 300,
    "https://example.org/a?b=c&d=%20#e",
    "\u00a0non-breaking\u3000ideographic\u2028separator",
    "Ġ is a letter too, and ▁ and Ċ",
]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    if not SMOLLM2.exists():
        pytest.fail(f"{SMOLLM2} is not there: run `make model`, which gets it")
    return SMOLLM2


@pytest.fixture(scope="session")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(smollm2, tmp_path_factory.mktemp("converted") / "smollm2", dtype="float32")


def test_converted_weights_equal_transformers_dequantisation(smollm2: Path, converted: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    ours = load_file(converted / "model.safetensors")
    theirs = {name: value for name, value in reference.state_dict().items() if name != "lm_head.weight"}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_tokenizer_encodes_and_decodes_as_transformers_does(smollm2: Path, converted: Path) -> None:
    reference = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ours = Tokenizer.from_file(str(converted / "tokenizer.json"))
    for text in TRICKY:
        expected = reference.encode(text, add_special_tokens=False)
        assert ours.encode(text).ids == expected, text
        decoded = reference.decode(expected, clean_up_tokenization_spaces=False)
        assert ours.decode(expected, skip_special_tokens=False) == decoded, text
    config = json.loads((converted / "tokenizer_config.json").read_text())
    assert config["chat_template"] == reference.chat_template
    assert (config["eos_token"], config["bos_token"]) == (reference.eos_token, reference.bos_token)


def test_digits_of_every_script_stand_alone_as_in_smollm2s_own_tokenizer(converted: Path) -> None:
    # transformers leaves this split out when it reads the GGUF; SmolLM2's tokenizer.json and llama.cpp have it.
    ours = Tokenizer.from_file(str(converted / "tokenizer.json"))
    pieces = [piece for piece, _ in ours.pre_tokenizer.pre_tokenize_str("on 12 ١٢ ½")]
    byte_level = [ours.pre_tokenizer.pre_tokenize_str(digit)[0][0] for digit in ("1", "2", "١", "٢", "½")]
    assert [piece for piece in pieces if piece not in ("on", "Ġ")] == byte_level


def test_the_converted_directory_is_a_model_that_transformers_opens(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert (model.config.num_hidden_layers, model.config.tie_word_embeddings) == (30, True)
    # <|im_end|>, which the file names, and <|endoftext|>, where llama.cpp ends too.
    assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_bfloat16_and_float16_round_as_torch_does(smollm2: Path, converted: Path, tmp_path: Path) -> None:
    exact = load_file(converted / "model.safetensors")
    for dtype, kind in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        rounded = load_file(convert(smollm2, tmp_path / dtype, dtype=dtype) / "model.safetensors")
        for name in ("model.embed_tokens.weight", "model.layers.7.self_attn.q_proj.weight", "model.norm.weight"):
            assert torch.equal(rounded[name], exact[name].to(kind)), (dtype, name)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_heads_are_put_back_in_order(tmp_path: Path, tied: bool) -> None:
    write_gguf_model(tmp_path / "tiny.gguf", "llama", tied=tied)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    ours = load_file(convert(tmp_path / "tiny.gguf", tmp_path / "out", dtype="float32") / "model.safetensors")
    theirs = reference.state_dict()
    assert ("lm_head.weight" in ours) is not tied
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3moe"])
def test_qwen_tensors_keep_their_values_under_the_hubs_names(tmp_path: Path, architecture: str) -> None:
    tensors = write_gguf_model(
        tmp_path / "tiny.gguf", architecture, pre="qwen2", quantization=gguf.GGMLQuantizationType.Q8_0
    )
    output = convert(tmp_path / "tiny.gguf", tmp_path / "out", dtype="float32")
    ours = load_file(output / "model.safetensors")
    layer = "model.layers.1"
    assert np.array_equal(ours[f"{layer}.self_attn.q_proj.weight"].numpy(), tensors["blk.1.attn_q.weight"])
    assert np.array_equal(ours[f"{layer}.self_attn.k_norm.weight"].numpy(), tensors["blk.1.attn_k_norm.weight"])
    if architecture == "qwen3moe":
        for expert in range(4):
            for kind in ("gate", "up", "down"):
                ours_expert = ours[f"{layer}.mlp.experts.{expert}.{kind}_proj.weight"].numpy()
                assert np.array_equal(ours_expert, tensors[f"blk.1.ffn_{kind}_exps.weight"][expert])
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    assert model.config.model_type == ("qwen3" if architecture == "qwen3" else "qwen3_moe")


def test_facts_of_a_mixture_of_experts_count_the_experts_that_a_token_reads(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "tiny.gguf", "qwen3moe", pre="qwen2", tied=False)
    source = SafetensorsDirectory(convert(tmp_path / "tiny.gguf", tmp_path / "out", dtype="float32"))
    facts = read_facts(json.loads(source.file("config.json")), source.index, "r", 1)
    layer = facts.layers[0]
    all_experts = 4 * 3 * 64 * HIDDEN
    assert layer.parameters - layer.active_parameters == all_experts // 2
    assert facts.layer_count == LAYERS
    assert facts.head_parameters == facts.embedding_parameters == VOCABULARY * HIDDEN
    assert not facts.tied_embeddings
    stored = sum(entry.nbytes for entry in source.index.tensors.values()) // 4
    counted = sum(item.parameters for item in facts.layers) + 2 * VOCABULARY * HIDDEN + HIDDEN
    assert counted == stored


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "BF16", "F16"])
def test_usual_quantisations_are_dequantised_as_the_library_does(tmp_path: Path, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    import mmap

    from languagepipes_node.weights.gguf_config import Conversion
    from languagepipes_node.weights.gguf_convert import _chunks  # the smallest piece that shows it
    from languagepipes_node.weights.gguf_header import GgufTensor

    rows, columns = 24, block * 2
    data = np.random.default_rng(3).integers(0, 60, rows * 2 * block_bytes, dtype=np.uint8)
    path = tmp_path / "data"
    path.write_bytes(data.tobytes())
    tensor = GgufTensor("x", quantization, (rows, columns), 0, data.nbytes)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        ours = np.concatenate(list(_chunks(mapped, Conversion("x", tensor, (rows, columns), 0, 2))))
    expected = gguf.quants.dequantize(data.reshape(rows, -1), quantization)
    order = np.arange(rows).reshape(2, rows // 4, 2).swapaxes(1, 2).reshape(-1)
    assert np.array_equal(ours, expected[order], equal_nan=True)


def test_an_existing_result_is_kept_and_a_failure_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_gguf_model(tmp_path / "tiny.gguf")
    output = tmp_path / "out"
    assert main([str(tmp_path / "tiny.gguf"), "--output", str(output)]) == 0
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert main([str(tmp_path / "tiny.gguf"), "--output", str(output)]) == 0
    assert (output / "model.safetensors").stat().st_mtime_ns == before

    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "short.gguf").write_bytes(whole[:-100])
    assert main([str(tmp_path / "short.gguf"), "--output", str(tmp_path / "none")]) == 1
    assert "BrokenFile: short.gguf: tensor" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "short.gguf", "tiny.gguf"]


def test_llama_3s_rope_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    factors = []
    for dimension in range(4):  # as llama.cpp's converter writes them for factor 32, over 8192 tokens
        wavelength = 2 * np.pi * 500000.0 ** (dimension / 4)
        smooth = min(1.0, max(0.0, (8192 / wavelength - 1) / 3))
        factors.append(1 / ((1 - smooth) / 32 + smooth))
    write_gguf_model(tmp_path / "tiny.gguf", rope_base=500000.0, rope_factors=factors, pre="llama-bpe")
    config = json.loads(
        (convert(tmp_path / "tiny.gguf", tmp_path / "out", dtype="float32") / "config.json").read_text()
    )
    assert config["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    write_gguf_model(tmp_path / "odd.gguf", rope_base=500000.0, rope_factors=[1, 2, 3, 4])
    with pytest.raises(WeightsError, match="follows no known RoPE scaling"):
        convert(tmp_path / "odd.gguf", tmp_path / "none", dtype="float32")
