"""The gated activation of an MLP: act(gate) × up."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """gate_up: [tokens, 2 × intermediate], gate before up. Returns [tokens, intermediate]."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return F.silu(gate).mul_(up)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(up)
