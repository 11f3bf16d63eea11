"""The members of a ring before KV is planned: the End Model and each stage with its layers, in the ring's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from languagepipes_api.plan import Device, LayerRange
from languagepipes_api.spec import PipeSpec, StageSpec
from languagepipes_api.template import PodTemplate

from languagepipes_operator.planning.memory import Sizes
from languagepipes_operator.planning.requests import MemberRequest, memory_limit_bytes
from languagepipes_operator.planning.stages import END_MODEL


@dataclass(frozen=True)
class Share:
    """A stage with the layers that it gets, and why."""

    stage: StageSpec
    layers: LayerRange
    reason: str


@dataclass(frozen=True)
class RingMember:
    """What a member holds before KV.

    title: its name to people. fixed_bytes: weights and overhead. block_bytes: one KV block of its layers.
    budget_bytes: the most it may take of its device, by `memory` or by a container's limit.
    """

    name: str
    title: str
    layers: int
    device: Device
    fixed_bytes: int
    block_bytes: int
    budget_bytes: int | None
    template: PodTemplate | None = None

    def request(self, blocks: int) -> MemberRequest:
        """What its pod requests with so many KV blocks."""
        kv = blocks * self.block_bytes
        return MemberRequest.of(
            self.name, self.title, self.device, self.template, need_bytes=self.fixed_bytes + kv, kv_bytes=kv
        )


def ring_members_of(
    spec: PipeSpec, sizes: Sizes, local: LayerRange, tail: LayerRange, shares: Sequence[Share]
) -> list[RingMember]:
    """The End Model first. local, tail: its layers at the front and at the back of the model."""
    device = spec.end_model.device
    fixed = sizes.end_weight_bytes(local, tail) + sizes.overhead_bytes(device, end_model=True)
    end_model = RingMember(
        END_MODEL,
        "the End Model",
        len(local) + len(tail),
        device,
        fixed,
        sizes.kv_block_bytes(len(local) + len(tail)),
        _budget(None, device, spec.end_model.template),
        spec.end_model.template,
    )
    stages = [
        RingMember(
            share.stage.name,
            f"stage {share.stage.name}",
            len(share.layers),
            share.stage.device,
            sizes.weight_bytes(share.layers) + sizes.overhead_bytes(share.stage.device, end_model=False),
            sizes.kv_block_bytes(len(share.layers)),
            _budget(share.stage.memory_bytes, share.stage.device, share.stage.template),
            share.stage.template,
        )
        for share in shares
    ]
    return [end_model, *stages]


def _budget(memory: int | None, device: Device, template: PodTemplate | None) -> int | None:
    """The most it may take of its device: on a CPU the container's limit counts too."""
    limit = memory_limit_bytes(template) if device == "CPU" else None
    return min((each for each in (memory, limit) if each is not None), default=None)
