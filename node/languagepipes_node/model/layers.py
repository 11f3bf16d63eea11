"""One decoder layer, described by data: pre-norm attention and a gated MLP, as in Llama and Qwen3."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from languagepipes_node.model.activation import gated
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.attention_plan import Sizes
from languagepipes_node.model.linear import Product
from languagepipes_node.model.moe import ExpertMlp
from languagepipes_node.model.quantised import Weight, plain
from languagepipes_node.model.rope import rotate_

# (queries [tokens, heads, head_dim], keys and values [tokens, 2 × kv heads, head_dim]) → [tokens, heads × head_dim].
# Stores keys and values in the cache, then attends.
Attention = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DecoderLayer:
    """Packed weights by target name (`model.names`); see there for what each is made of."""

    def __init__(self, architecture: Architecture, layer: int, weights: dict[str, Weight]) -> None:
        a = architecture
        self._sizes = Sizes(a.attention_heads, a.kv_heads, a.head_dim)
        self._eps = a.rms_norm_eps
        self._activation = a.activation
        self._hidden = (a.hidden_size,)

        def bias(name: str) -> torch.Tensor | None:
            return plain(weights[name]) if name in weights else None

        self._input_norm = plain(weights["input_norm"])
        self._mlp_norm = plain(weights["mlp_norm"])
        self._qkv, self._qkv_bias = weights["qkv"], bias("qkv_bias")
        self._output, self._output_bias = weights["output"], bias("output_bias")
        self._qk_norm = None
        if "qk_norm" in weights:
            queries, keys = plain(weights["qk_norm"]).view(2, a.head_dim)
            # One row a head, so that all heads are normed by one call: [heads + kv heads, head_dim]
            self._qk_norm = torch.cat((queries.expand(a.attention_heads, -1), keys.expand(a.kv_heads, -1)))
        self._experts = None
        if a.experts is not None and "router" in weights:
            self._experts = ExpertMlp(
                a.experts, weights["router"], weights["experts_gate_up"], weights["experts_down"], a.activation
            )
        else:
            self._gate_up, self._gate_up_bias = weights["gate_up"], bias("gate_up_bias")
            self._down, self._down_bias = weights["down"], bias("down_bias")

    def __call__(
        self,
        x: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        attention: Attention,
        product: Product,
    ) -> torch.Tensor:
        """x: [tokens, hidden], overwritten with the result, which is returned. Arithmetic is in x's dtype.

        cosine, sine: `Rope.at`. product: multiplies by a weight (`model.linear`).
        """
        x.add_(self._attend(self._norm(x, self._input_norm), cosine, sine, attention, product))
        return x.add_(self._mlp(self._norm(x, self._mlp_norm), product))

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self._hidden, weight if weight.dtype == x.dtype else weight.to(x.dtype), self._eps)

    def _attend(
        self,
        x: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        attention: Attention,
        product: Product,
    ) -> torch.Tensor:
        sizes = self._sizes
        heads = product(x, self._qkv, self._qkv_bias).view(x.shape[0], -1, sizes.head_dim)
        rotated = heads[:, : sizes.heads + sizes.kv_heads]  # queries and keys; values follow
        if self._qk_norm is not None:
            normed = F.rms_norm(rotated, (sizes.head_dim,), None, self._eps)
            torch.mul(normed, self._qk_norm, out=rotated)
        rotate_(rotated, cosine, sine)
        attended = attention(heads[:, : sizes.heads], heads[:, sizes.heads :])
        return product(attended, self._output, self._output_bias)

    def _mlp(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        if self._experts is not None:
            return self._experts(x, product)
        return product(
            gated(product(x, self._gate_up, self._gate_up_bias), self._activation),
            self._down,
            self._down_bias,
        )
