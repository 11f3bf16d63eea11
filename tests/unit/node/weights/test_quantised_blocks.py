"""GGUF's block types are kept value for value, and what the store quantises itself is close to what it was made of."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Types
from gguf.quants import dequantize
from languagepipes_node.weights.errors import UnsupportedFile
from languagepipes_node.weights.gguf_blocks import KEPT_TYPES, blocks_of, kept_kind
from languagepipes_node.weights.quantised import (
    Q4,
    Q8,
    Q8_OF_16,
    Kind,
    dequantised,
    is_matrix,
    kind_for,
    quantise,
    stored_kind,
)

NAME = "model.layers.0.mlp.up_proj.weight"
ROWS, DEPTH = 6, 512
# Where a block's float16 scales lie; the rest of a block may be any bytes.
SCALES_AT = {
    Types.Q8_0: (0,),
    Types.Q5_0: (0,),
    Types.Q4_0: (0,),
    Types.Q4_1: (0, 2),
    Types.Q4_K: (0, 2),
    Types.Q6_K: (208,),
    Types.MXFP4: (),
}
# Products of a super-scale and a sub-scale are rounded to float16; all else is exact.
ROUNDED = (Types.Q4_K, Types.Q6_K)


def random_rows(kind: Types) -> np.ndarray:
    """Every pattern of bits that a block may have, with scales of usual sizes."""
    random = np.random.default_rng(int(kind))
    values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (ROWS, DEPTH // values, block_bytes), dtype=np.uint8)
    for at in SCALES_AT[kind]:
        scales = random.normal(0, 0.01, data.shape[:2]).astype("<f2")
        data[:, :, at : at + 2] = scales[:, :, None].view(np.uint8)
    if kind == Types.MXFP4:
        data[:, :, 0] = random.integers(110, 132, data.shape[:2])
    return data.reshape(ROWS, -1)


@pytest.mark.parametrize("kind", [Types[name] for name in KEPT_TYPES], ids=lambda kind: kind.name)
def test_kept_blocks_stand_for_the_values_that_gguf_dequantises(kind: Types) -> None:
    data = random_rows(kind)
    ours = kept_kind(kind, NAME, (ROWS, DEPTH))
    assert ours is not None
    blocks = blocks_of(data, kind, NAME)
    values, expected = dequantised(blocks, ours), dequantize(data, kind)
    if kind in ROUNDED:
        # Half a unit in the last place of a float16 scale, times the largest value, and as much for the minimum.
        most = 32 if kind == Types.Q6_K else 15
        scales = np.repeat(np.abs(blocks.scales.astype(np.float64)), ours.group, axis=1)
        bound = (scales * most + (0 if kind == Types.Q6_K else np.abs(expected) + scales * most)) * 2.0**-11
        assert (np.abs(values - expected) <= bound + 2.0**-24 * most).all()
    else:
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(("kind", "largest"), [(Q8, 0.0065), (Q8_OF_16, 0.006), (Q4, 0.085)], ids=str)
def test_quantised_values_are_close_to_those_they_were_made_of(kind: Kind, largest: float) -> None:
    values = np.random.default_rng(1).normal(0, 0.02, (64, 256)).astype(np.float32)
    back = dequantised(quantise(values, kind, NAME), kind)
    assert np.sqrt(np.mean((back - values) ** 2)) <= largest * 0.02
    # What was quantised before changes no more: its own scales are found again.
    if kind.bits == 8:
        np.testing.assert_allclose(dequantised(quantise(back, kind, NAME), kind), back, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [Q8, Q4], ids=str)
def test_groups_without_width_keep_their_value(kind: Kind) -> None:
    values = np.repeat(np.array([0.0, 0.5, -0.25, 6e-8], dtype=np.float32), 32).reshape(2, 64)
    np.testing.assert_allclose(dequantised(quantise(values, kind, NAME), kind), values, rtol=1e-3, atol=6e-8)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((1, 32), np.nan, np.float32), "values that are not finite"),
        (np.full((1, 32), 3e38, np.float32), "float16's 65504; set spec.model.quantization to none"),
    ],
)
@pytest.mark.parametrize("kind", [Q8, Q4], ids=str)
def test_what_cannot_be_quantised_is_named(values: np.ndarray, reason: str, kind: Kind) -> None:
    with pytest.raises(UnsupportedFile, match=reason) as refused, np.errstate(all="ignore"):
        quantise(values, kind, NAME)
    assert NAME in str(refused.value)


def test_only_matrices_of_layers_embedding_and_head_are_quantised() -> None:
    assert is_matrix("model.embed_tokens.weight", (8, 32))
    assert is_matrix("lm_head.weight", (8, 32))
    assert is_matrix("model.layers.11.mlp.experts.7.down_proj.weight", (8, 32))
    assert not is_matrix("model.layers.0.mlp.gate.weight", (8, 32))
    assert not is_matrix("model.layers.0.input_layernorm.weight", (32,))
    assert not is_matrix("model.layers.0.self_attn.q_proj.bias", (32,))
    assert kind_for(NAME, (8, 40), "int4") is None
    assert kind_for(NAME, (8, 64), "int4") == Q4
    assert kind_for("lm_head.weight", (8, 64), "int4") == Q8


def test_scales_that_do_not_fit_their_values_are_refused() -> None:
    whole = Q4.tensors(NAME, (8, 64))
    assert stored_kind(NAME, whole) == (Q4, (8, 64))
    for name in list(whole)[1:]:
        wrong = {**whole, name: ("float16", (7, 2))}
        with pytest.raises(UnsupportedFile, match=r"up_proj\.weight: its scales and minimums do not fit"):
            stored_kind(NAME, wrong)
    with pytest.raises(UnsupportedFile, match="do not fit"):
        stored_kind(NAME, dict(list(whole.items())[:2]))
