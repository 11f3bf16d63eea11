"""Rotary position embeddings: frequencies from the config's parameters, cosines and sines of a step's positions.

Formulas: RoFormer (arXiv 2104.09864), Llama 3.1's frequency bands, YaRN (arXiv 2309.00071), each as transformers
computes it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from languagepipes_node.model.errors import UnsupportedModel


class Rope:
    """The rotation of one model. inverse frequencies: float32 [head_dim], each of the head_dim / 2 given twice."""

    def __init__(self, parameters: dict[str, Any], head_dim: int, device: torch.device) -> None:
        half, self._scale = frequencies(parameters, head_dim)
        self._inverse = torch.cat((half, half)).to(device)  # [head_dim]
        # With the sign in the sine, rotating is x·cos + swap(x)·sin, where swap exchanges the halves.
        self._sign = torch.ones(head_dim, device=device)
        self._sign[: head_dim // 2] = -1
        self._sign *= self._scale

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions: int64 [tokens]. Returns cosine and signed sine, each [tokens, 1, head_dim] in `dtype`."""
        angles = positions[:, None, None].float() * self._inverse
        cosine = angles.cos()
        if self._scale != 1.0:
            cosine *= self._scale
        return cosine.to(dtype), (angles.sin() * self._sign).to(dtype)


def rotate_(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotate `heads` [tokens, heads, head_dim] in place by `Rope.at`'s tables."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    return heads.mul_(cosine).addcmul_(swapped, sine)


def frequencies(parameters: dict[str, Any], head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies, float32 [head_dim / 2], and the factor on cosine and sine.

    parameters: `Architecture.rope`. Raises UnsupportedModel for an unknown rope_type.
    """
    kind = parameters.get("rope_type", "default")
    base = float(parameters["rope_theta"])
    steps = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse = 1.0 / (base**steps)
    if kind == "default":
        return inverse, 1.0
    if kind == "linear":
        return inverse / parameters["factor"], 1.0
    if kind == "llama3":
        return _llama3(inverse, parameters), 1.0
    if kind == "yarn":
        return _yarn(inverse, parameters, head_dim, base)
    raise UnsupportedModel(f"rope_type {kind!r} is not supported")


def _llama3(inverse: torch.Tensor, parameters: dict[str, Any]) -> torch.Tensor:
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelength = 2 * math.pi / inverse
    slow = torch.where(wavelength > original / low, inverse / factor, inverse)
    smooth = (original / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * slow / factor + smooth * slow
    between = ~(wavelength < original / high) * ~(wavelength > original / low)
    return torch.where(between, smoothed, slow)


def _yarn(inverse: torch.Tensor, parameters: dict[str, Any], head_dim: int, base: float) -> tuple[torch.Tensor, float]:
    factor, original = parameters["factor"], parameters["original_max_position_embeddings"]

    def mscale(scale: float, weight: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    attention = parameters.get("attention_factor")
    if attention is None:
        weight, weight_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        attention = mscale(factor, weight) / mscale(factor, weight_all) if weight and weight_all else mscale(factor)

    def dimension(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(parameters.get("beta_fast") or 32), dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as transformers: a ramp of width zero would divide by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    extrapolated = 1 - ramp
    return inverse / factor * (1 - extrapolated) + inverse * extrapolated, float(attention)
