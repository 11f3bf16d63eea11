"""config.json is read in every spelling that transformers writes; what cannot be served is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from languagepipes_api.facts import TRANSFORMERS_FAMILIES
from languagepipes_node.model.architecture import NATIVE_FAMILIES, Architecture, ArchitectureError
from languagepipes_node.model.rope import frequencies
from support.models import MODELS
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# As transformers 4 wrote them (Qwen3-30B-A3B, Llama-3.2, Mistral-7B, Qwen2.5), shortened to what matters.
QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 2,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [3],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 4,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def test_a_mixture_of_experts_as_the_hub_has_it() -> None:
    architecture = Architecture.from_config(QWEN3_MOE)
    assert architecture.sparse_layers == (False, True, False, False, False, True)
    assert architecture.experts is not None
    assert (architecture.experts.count, architecture.experts.top_k) == (128, 8)
    assert architecture.experts.normalise_top_k
    assert architecture.stored_dtype == "bfloat16"
    assert architecture.rope == {"rope_type": "default", "rope_theta": 1e6}
    assert architecture.qk_norm
    assert not architecture.tied_embeddings


def test_llama_with_scaled_rope_and_several_eos_tokens() -> None:
    architecture = Architecture.from_config(LLAMA)
    assert architecture.eos_token_ids == (128001, 128008, 128009)
    assert architecture.rope["rope_type"] == "llama3"
    assert architecture.rope["rope_theta"] == 500000.0
    assert architecture.tied_embeddings
    assert architecture.sliding_windows == (None,) * 4


@pytest.mark.parametrize("name", MODELS)
def test_the_older_and_the_newer_spelling_give_the_same(name: str) -> None:
    written = MODELS[name]().to_dict() | {"dtype": "float32"}  # as save_pretrained writes it
    newer = {key: value for key, value in written.items() if value is not None}
    older = dict(newer)
    rope = older.pop("rope_parameters")
    if "rope_type" in rope:
        older["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
            older["rope_scaling"] = {**scaling, "type": rope["rope_type"]}
    if "num_local_experts" in older:
        older["num_experts"] = older.pop("num_local_experts")
    older["torch_dtype"] = older.pop("dtype", "float32")
    assert Architecture.from_config(older) == Architecture.from_config(newer)


def test_heads_without_a_size_share_the_hidden_size() -> None:
    config = {key: value for key, value in LLAMA.items() if key not in ("head_dim", "num_key_value_heads")}
    architecture = Architecture.from_config(config)
    assert (architecture.head_dim, architecture.kv_heads) == (64, 32)


@pytest.mark.parametrize("family", NATIVE_FAMILIES + TRANSFORMERS_FAMILIES)
def test_a_key_that_config_leaves_out_means_what_the_familys_class_says(family: str) -> None:
    own = AutoConfig.for_model(family)
    whole = {key: value for key, value in own.to_dict().items() if value is not None and key != "layer_types"}
    needed = (
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    )
    experts = ("num_local_experts", "num_experts_per_tok", "moe_intermediate_size")  # named where they are missing
    bare = {key: whole[key] for key in (*needed, "max_position_embeddings", *experts) if key in whole}
    missing, said = Architecture.from_config(bare), Architecture.from_config(whole)
    names = ("kv_heads", "head_dim", "rms_norm_eps", "sliding_windows", "tied_embeddings", "attention_bias", "mlp_bias")
    for name in (*names, "sparse_layers", "experts", "rope"):
        assert getattr(missing, name) == getattr(said, name), name


def test_no_window_is_no_default_window() -> None:
    mistral = {**LLAMA, "model_type": "mistral", "num_hidden_layers": 2}
    assert Architecture.from_config({**mistral, "sliding_window": None}).sliding_windows == (None, None)
    assert Architecture.from_config(mistral).sliding_windows == (4096, 4096)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "model_type: 'gpt2' is not a supported family; supported are llama, mistral, qwen2"),
    ({"model_type": None}, "model_type: None is not a supported family"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config: pre-quantised weights"),
    ({"num_hidden_layers": None}, "num_hidden_layers: missing from config.json"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is not a whole number from 1"),
    ({"num_hidden_layers": 1 << 30}, "num_hidden_layers: 1073741824 is not a whole number from 1 to 4096"),
    ({"hidden_size": 64.5}, "hidden_size: 64.5 is not a whole number"),
    ({"hidden_size": True}, "hidden_size: True is not a whole number"),
    ({"vocab_size": "many"}, "vocab_size: 'many' is not a whole number"),
    ({"num_key_value_heads": 7}, "num_key_value_heads: 7 does not divide num_attention_heads"),
    ({"head_dim": 63}, "head_dim: 63 is odd"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps: -1.0 is not a positive number"),
    ({"hidden_act": "relu2"}, "hidden_act: 'relu2' is not supported; supported are silu"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes' is neither true nor false"),
    ({"torch_dtype": "float8_e4m3fn"}, "dtype: 'float8_e4m3fn' is not supported"),
    ({"eos_token_id": [-1]}, "eos_token_id: -1 is not a whole number"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type: 'dynamic' is not supported"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor: missing; rope type 'linear' needs it"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor: 0 is not a positive number"),
    ({"rope_scaling": [4]}, "rope_scaling: [4] is not an object"),
    (
        {"rope_parameters": {**LLAMA["rope_scaling"], "high_freq_factor": 1.0}},
        "rope_parameters.high_freq_factor: 1.0 has to be above low_freq_factor",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5 is not supported"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message.split(";")[0] for _, message in REFUSED])
def test_a_wrong_config_is_refused_with_its_field_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as refused:
        Architecture.from_config({**LLAMA, **change})
    assert message in str(refused.value)


def test_wrong_experts_and_layer_types_are_refused() -> None:
    for change, message in (
        ({"num_experts_per_tok": 129}, "num_experts_per_tok: 129 is more than the 128 experts"),
        ({"mlp_only_layers": 3}, "mlp_only_layers: 3 is not a list"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size: missing"),
    ):
        with pytest.raises(ArchitectureError, match=message):
            Architecture.from_config({**QWEN3_MOE, **change})
    sliding = {**LLAMA, "model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}
    with pytest.raises(ArchitectureError, match="layer_types: 'chunked_attention' is not supported"):
        Architecture.from_config({**sliding, "layer_types": ["chunked_attention"] * 4})
    with pytest.raises(ArchitectureError, match="one entry for each of the 4 layers"):
        Architecture.from_config({**sliding, "layer_types": ["full_attention"]})


def test_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"config\.json holds a list, not an object"):
        Architecture.from_config([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 4.0},
        {**LLAMA["rope_scaling"], "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16, "beta_slow": 2, "truncate": False},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
    ],
    ids=str,
)
def test_rope_frequencies_equal_those_of_transformers(parameters: dict[str, Any]) -> None:
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 5e5, **parameters},
    )
    architecture = Architecture.from_config(config.to_dict())
    theirs, their_scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    ours, our_scale = frequencies(architecture.rope, architecture.head_dim)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    assert our_scale == pytest.approx(their_scale)


@pytest.mark.parametrize(
    ("family", "scaling", "positions"),
    [
        ("qwen2", {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ("qwen2", {"type": "yarn", "factor": 4.0}, 4 * 40960),
        ("qwen2", {"type": "yarn", "original_max_position_embeddings": 10240}, 40960),
        ("qwen2", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192}, 40960),
        ("llama", {"type": "linear", "factor": 2.5}, 102400),
        ("olmo2", {"type": "linear", "factor": 4.0}, 4 * 40960),
        ("llama", LLAMA["rope_scaling"], 40960),
        ("gemma3_text", {"rope_type": "linear", "factor": 8.0}, 40960),
        ("llama", None, 40960),
    ],
    ids=str,
)
def test_positions_are_those_that_the_ropes_scaling_gives(
    family: str, scaling: dict[str, Any] | None, positions: int
) -> None:
    config = {**LLAMA, "model_type": family, "max_position_embeddings": 40960, "rope_scaling": scaling}
    assert Architecture.from_config(config).max_position == positions
