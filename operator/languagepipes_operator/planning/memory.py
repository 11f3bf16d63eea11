"""Bytes: what a member holds, reads and needs besides. The constants of overhead are stated here alone.

A member needs weights + KV + overhead. Overhead is what does not depend on its layers: the process, the
receive slots of the frames in flight, the activations of one frame, and at the End Model the logits of the
sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from languagepipes_api.facts import TRANSFORMERS_FAMILIES, ModelFacts, QuantisedFacts, QuantisedShare
from languagepipes_api.plan import DTYPE_BYTES, Device, Dtype, LayerRange, Quantization

KV_BLOCK_TOKENS = 64
FRAME_TOKENS = 512

_MIB = 2**20
# CPU: resident after importing torch and the node (0.55 GiB measured), and the allocator's slack.
# GPU: device memory of a CUDA context with its libraries' workspaces.
PROCESS_BYTES: dict[Device, int] = {"CPU": 768 * _MIB, "GPU": 1024 * _MIB}
# Main memory that importing transformers takes besides (123 MiB measured), where its layers compute the family.
TRANSFORMERS_BYTES = 128 * _MIB
# Weights at rest in a 16-bit format are widened tile by tile where the processor computes faster in float32.
WIDENING_BYTES = 64 * _MIB
# Rows of float32 logits that the End Model samples from in one step.
LOGIT_ROWS = 64
_ACTIVATION_BYTES = 4  # float32, whatever the weights are

# Of a machine's memory, what members may plan with; the rest is the system's, the kernel's and page cache.
USABLE_FRACTION: dict[Device, float] = {"CPU": 0.8, "GPU": 0.9}
# Where nobody asked for more, all KV of a machine takes at most this part of its main memory.
CPU_KV_FRACTION = 0.25
# Where nothing else limits it, KV is planned for this many sequences of maxContextLength, or for
# maxConcurrentRequests if that is less.
DEFAULT_SEQUENCES = 16
# Bytes a second, only to compare a CPU member with a GPU member.
ASSUMED_BANDWIDTH: dict[Device, float] = {"CPU": 50e9, "GPU": 500e9}


@dataclass(frozen=True)
class Sizes:
    """The arithmetic for one model in one dtype on a ring of `members` (End Model included)."""

    facts: ModelFacts
    dtype: Dtype
    max_context_length: int
    ring_members: int
    quantization: Quantization = "none"

    @property
    def quantised(self) -> QuantisedFacts | None:
        """What is quantised of the model; None if nothing is."""
        return self.facts.quantised.get(self.quantization)

    def _resident(self, parameters: int, share: QuantisedShare | None) -> int:
        if share is None:
            return self.dtype_bytes * parameters
        return self.dtype_bytes * (parameters - share.parameters) + share.nbytes

    def _read(self, parameters: int, share: QuantisedShare | None) -> int:
        if share is None:
            return self.dtype_bytes * parameters
        return self.dtype_bytes * (parameters - share.active_parameters) + share.active_nbytes

    @cached_property
    def _shares(self) -> tuple[QuantisedShare | None, ...]:
        """Of every layer."""
        return (None,) * self.facts.layer_count if self.quantised is None else tuple(self.quantised.layers)

    @cached_property
    def _weights_before(self) -> tuple[int, ...]:
        """Resident bytes of the layers before each one; a split asks for many ranges."""
        layers = zip(self.facts.layers, self._shares, strict=True)
        return (0, *accumulate(self._resident(layer.parameters, share) for layer, share in layers))

    @cached_property
    def _steps_before(self) -> tuple[int, ...]:
        """What a step reads of the layers before each one."""
        layers = zip(self.facts.layers, self._shares, strict=True)
        return (0, *accumulate(self._read(layer.active_parameters, share) for layer, share in layers))

    @property
    def head_bytes(self) -> int:
        """What a step reads of the head: all of it, tied or not."""
        return self._read(self.facts.head_parameters, self.quantised.head if self.quantised else None)

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def frames_in_flight(self) -> int:
        """One for each member, and one that is being filled or emptied."""
        return self.ring_members + 1

    @property
    def blocks_per_sequence(self) -> int:
        return -(-self.max_context_length // KV_BLOCK_TOKENS)

    def weight_bytes(self, layers: LayerRange) -> int:
        """Resident bytes of the layers, all experts included."""
        return self._weights_before[layers.stop] - self._weights_before[layers.start]

    def step_bytes(self, layers: LayerRange) -> int:
        """Bytes of the layers' weights that one token's step reads."""
        return self._steps_before[layers.stop] - self._steps_before[layers.start]

    def kv_block_bytes(self, layers: int) -> int:
        """One KV block (64 tokens) of that many layers."""
        return layers * KV_BLOCK_TOKENS * self.facts.kv_parameters_per_token_layer * self.dtype_bytes

    def kv_sequence_bytes(self, layers: int) -> int:
        """KV of one sequence of maxContextLength."""
        return self.blocks_per_sequence * self.kv_block_bytes(layers)

    def end_weight_bytes(self, local: LayerRange, tail: LayerRange) -> int:
        """The End Model's resident bytes: its layers, embedding, norm, and the head unless it is the
        embedding.
        """
        facts, quantised = self.facts, self.quantised
        ends = self._resident(facts.embedding_parameters, quantised.embedding if quantised else None)
        ends += self.dtype_bytes * facts.norm_parameters
        if not facts.tied_embeddings:
            ends += self._resident(facts.head_parameters, quantised.head if quantised else None)
        return ends + self.weight_bytes(local) + self.weight_bytes(tail)

    def end_step_bytes(self, local: LayerRange, tail: LayerRange) -> int:
        """What its step reads: its layers, the norm and the head whole; of the embedding, a row, which is
        nothing.
        """
        ends = self.dtype_bytes * self.facts.norm_parameters + self.head_bytes
        return ends + self.step_bytes(local) + self.step_bytes(tail)

    @cached_property
    def _overheads(self) -> dict[tuple[Device, bool], int]:
        devices: tuple[Device, ...] = ("CPU", "GPU")
        return {(device, end): self._overhead(device, end_model=end) for device in devices for end in (False, True)}

    def overhead_bytes(self, device: Device, *, end_model: bool) -> int:
        """Everything but weights and KV."""
        return self._overheads[device, end_model]

    def _overhead(self, device: Device, *, end_model: bool) -> int:
        facts = self.facts
        slots = self.frames_in_flight * FRAME_TOKENS * facts.hidden_size * self.dtype_bytes
        wide = 4 * facts.hidden_size + 3 * facts.intermediate_size
        heads = (2 * facts.attention_heads + 2 * facts.kv_heads) * facts.head_dim
        # A CPU's native step brings the rows of each expert together: what experts are given and what they gate.
        by_expert = facts.experts_per_token * (facts.hidden_size + facts.expert_intermediate_size)
        activations = FRAME_TOKENS * (wide + heads + (by_expert if device == "CPU" else 0)) * _ACTIVATION_BYTES
        widens = self.dtype_bytes < _ACTIVATION_BYTES or self.quantised is not None
        widening = WIDENING_BYTES if device == "CPU" and widens else 0
        logits = LOGIT_ROWS * facts.vocabulary_size * _ACTIVATION_BYTES if end_model else 0
        transformers = TRANSFORMERS_BYTES if device == "CPU" and facts.family in TRANSFORMERS_FAMILIES else 0
        return PROCESS_BYTES[device] + transformers + slots + activations + widening + logits

    def stage_need_bytes(self, layers: LayerRange, device: Device) -> int:
        """The least a stage can live with: weights, KV for one sequence of maxContextLength, overhead."""
        held = self.weight_bytes(layers) + self.kv_sequence_bytes(len(layers))
        return held + self.overhead_bytes(device, end_model=False)
