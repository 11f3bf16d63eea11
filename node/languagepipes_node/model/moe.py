"""The mixture-of-experts MLP of Qwen3-MoE by torch's calls: a router picks a few experts for each token.

Where whole native steps serve (`model.whole_step`) they have routing and experts of their own.
"""

from __future__ import annotations

import torch

from languagepipes_node.model.activation import gated
from languagepipes_node.model.architecture import Experts
from languagepipes_node.model.linear import Product
from languagepipes_node.model.quantised import Weight, rows_of


def each_expert(weight: Weight, count: int) -> list[Weight]:
    """Views of the matrices of `count` experts, which are one under the other."""
    height = weight.shape[0] // count
    return [rows_of(weight, expert * height, (expert + 1) * height) for expert in range(count)]


class ExpertMlp:
    """router [experts, hidden]; the experts' matrices one under the other: gate_up
    [experts × 2 × intermediate, hidden], down [experts × hidden, intermediate].
    """

    def __init__(
        self,
        experts: Experts,
        router: Weight,
        gate_up: Weight,
        down: Weight,
        activation: str,
    ) -> None:
        self._experts = experts
        self._router = router
        self._gate_up = each_expert(gate_up, experts.count)
        self._down = each_expert(down, experts.count)
        self._activation = activation

    def __call__(self, x: torch.Tensor, product: Product) -> torch.Tensor:
        """x: [tokens, hidden]. Tokens of one expert are computed together; a token's experts are added in id order."""
        weights, chosen = self.route(x, product)  # [tokens, top_k] each
        flat = chosen.reshape(-1)
        order = flat.argsort(stable=True)
        tokens = order // self._experts.top_k
        shares = weights.reshape(-1, 1)[order]
        counts = torch.bincount(flat, minlength=self._experts.count).tolist()
        out = torch.zeros_like(x)
        start = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            own = tokens[start : start + count]
            inner = gated(product(x[own], self._gate_up[expert], None), self._activation)
            result = product(inner, self._down[expert], None)
            out.index_add_(0, own, result.mul_(shares[start : start + count]))
            start += count
        return out

    def route(self, x: torch.Tensor, product: Product) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's weights, in x's dtype, and experts, int64; the softmax is in float32 as in the reference."""
        scores = product(x, self._router, None).softmax(-1, dtype=torch.float32)
        weights, chosen = scores.topk(self._experts.top_k, dim=-1)
        if self._experts.normalise_top_k:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen
