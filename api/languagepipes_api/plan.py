"""The plan: who runs which layers, why, and how many bytes that takes. Pure data, shared by operator and node.

The planner (`languagepipes_operator.planning`) makes plans; members read theirs from a file and obey. A plan says
nothing of addresses or certificates, and of nodes only which one a member would rather run on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from languagepipes_api.names import WIRE_VERSION

Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["CPU", "GPU"]
# How matrices are kept: as spec.dtype says, quantised by the store, or in a GGUF file's own types.
Quantization = Literal["none", "int8", "int4", "asStored"]
# The formats of tool calls that a node reads (languagepipes_node.end_model.tools.families).
ToolParser = Literal["auto", "hermes", "qwen-xml", "llama3-json", "mistral", "harmony", "glm", "gemma", "deepseek"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


def weights_revision(model_revision: str, quantization: Quantization) -> str:
    """The revision that a store states to members and that they ask for: members of two modes never mix."""
    return model_revision if quantization == "none" else f"{model_revision}+{quantization}"


@dataclass(frozen=True, order=True)
class LayerRange:
    """Half-open `[start, stop)`; shown to people inclusive."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return "none" if self.stop <= self.start else f"{self.start}-{self.stop - 1}"


@dataclass(frozen=True)
class StageAssignment:
    """One stage's share. All sizes in bytes; `memory_budget_bytes` is None where the spec names none.

    reason: one human sentence saying why it got these layers, and why that node. node: the Kubernetes node on which the
    first replica's would rather run, a preference and no demand; None where no nodes are known or the plan leaves it to
    the scheduler. memory_request_bytes: main memory to ask the scheduler for, whatever the device; 0 in a plan that
    is older than requests.
    """

    name: str
    layers: LayerRange
    device: Device
    weight_bytes: int
    step_bytes: int
    kv_bytes: int
    overhead_bytes: int
    memory_budget_bytes: int | None
    reason: str
    node: str | None = None
    memory_request_bytes: int = 0


@dataclass(frozen=True)
class EndModelAssignment:
    """The End Model's share: layers `[0, local)` in front and `[n - tail, n)` at the back, embedding, norm, head.

    node, memory_request_bytes: as a stage's.
    """

    local_layers: LayerRange
    tail_layers: LayerRange
    device: Device
    weight_bytes: int
    step_bytes: int
    kv_bytes: int
    overhead_bytes: int
    reason: str
    node: str | None = None
    memory_request_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """The result of planning one replica.

    dtype: of KV, on the wire, and of weights at rest that are not quantised. quantization: of the matrices of layers,
    embedding and head. kv_blocks: the ring's one block-id space, the minimum over all
    members; kv_limited_by: the member that sets it. frame_tokens: most packed tokens in one frame.
    frames_in_flight: most frames on the ring at once; every member has at least as many receive slots.
    """

    model_revision: str
    family: str
    layer_count: int
    hidden_size: int
    dtype: Dtype
    end_model: EndModelAssignment
    stages: tuple[StageAssignment, ...]
    max_context_length: int
    kv_block_tokens: int
    kv_blocks: int
    kv_limited_by: str
    max_sequences: int
    frame_tokens: int
    frames_in_flight: int
    slowest_station: str
    reasons: tuple[str, ...] = ()
    wire_version: int = WIRE_VERSION
    quantization: Quantization = "none"

    @property
    def weights_revision(self) -> str:
        """What the store must serve: the model's revision, and which weights are made of it."""
        return weights_revision(self.model_revision, self.quantization)

    @property
    def hash(self) -> str:
        """Identifies (model revision, layer ranges, dtype, quantization, wire version, block geometry): 16 hex digits
        of SHA-256.

        Names, devices, nodes, reasons and byte counts are outside it: they change nothing that members must agree on.
        """
        agreed: dict[str, Any] = {
            "revision": self.model_revision,
            "local": [self.end_model.local_layers.start, self.end_model.local_layers.stop],
            "tail": [self.end_model.tail_layers.start, self.end_model.tail_layers.stop],
            "stages": [[stage.layers.start, stage.layers.stop] for stage in self.stages],
            "dtype": self.dtype,
            "wire": self.wire_version,
            "blocks": [self.kv_block_tokens, self.kv_blocks],
            "frames": [self.frame_tokens, self.frames_in_flight],
        }
        if self.quantization != "none":  # at its default it is left out: older plans keep their hashes
            agreed["quantization"] = self.quantization
        return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the plan hash beside the fields; `quantization` only if there is any."""
        data = {**asdict(self), "hash": self.hash}
        if self.quantization == "none":
            del data["quantization"]  # members of an older version read such plans too
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError if it is not a plan or its hash is off."""
        fields = dict(data)
        stated = fields.pop("hash")
        end_model = dict(fields.pop("end_model"))
        for name in ("local_layers", "tail_layers"):
            end_model[name] = LayerRange(**end_model[name])
        stages = tuple(
            StageAssignment(**{**stage, "layers": LayerRange(**stage["layers"])}) for stage in fields.pop("stages")
        )
        plan = cls(
            end_model=EndModelAssignment(**end_model),
            stages=stages,
            reasons=tuple(fields.pop("reasons")),
            **fields,
        )
        if plan.hash != stated:
            raise ValueError(f"plan hash {stated} does not match its fields, which give {plan.hash}")
        return plan
