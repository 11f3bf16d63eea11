"""A step through a range of layers in one native call (`lp_layers` in node/native/step.c).

For a handful of rows, calling torch a dozen times a layer costs more than computing. It serves layers with SiLU MLPs
on a CPU, mixtures of experts included. Weights in panels (`model.matrix`) are multiplied in bfloat16, all others in
float32; residual stream, norms and sums are float32. With panels a step of any size comes here; without, whoever uses
it measures at start-up up to how many rows it is faster than torch (`model.stack`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from languagepipes_node.model import kernels
from languagepipes_node.model.architecture import Architecture, Experts
from languagepipes_node.model.kv import KvCache
from languagepipes_node.model.matrix import KINDS, Matrix, NativeMatrix
from languagepipes_node.model.rope import Rope
from languagepipes_node.model.step import Step

_MOST_LAYERS, _MOST_GROUP = 256, 32
_MATRICES = ("qkv", "output", "gate", "up", "down")
_OF_EXPERTS = ("gate", "up", "down")
_POINTER = ctypes.c_void_p


class _Mixture(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("count", "top_k", "normalise")),
        ("router", NativeMatrix),
        *((name, ctypes.POINTER(NativeMatrix)) for name in _OF_EXPERTS),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("input_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, _POINTER) for name in ("qkv_bias", "output_bias", "gate_up_bias", "down_bias")),
        *((name, NativeMatrix) for name in _MATRICES),
        ("cache", _POINTER),
        ("window", ctypes.c_int64),
        ("mixture", ctypes.POINTER(_Mixture)),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "slots", "block_tokens")
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("dtype", ctypes.c_int32),
        ("level", ctypes.c_int32),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "sequences", "longest")),
        *((name, _POINTER) for name in ("position", "slot", "blocks", "sequence_row", "sequence_block")),
        *((name, _POINTER) for name in ("cosine", "sine")),
    ]


def serves(architecture: Architecture, device: torch.device) -> bool:
    """Whether `WholeStep` can run this architecture's layers here."""
    a = architecture
    return (
        device.type == "cpu"
        and kernels.available()
        and a.activation == "silu"
        and a.head_dim % 16 == 0
        and a.layer_count <= _MOST_LAYERS
        and a.attention_heads // a.kv_heads <= _MOST_GROUP
    )


@dataclass(frozen=True)
class Mixture:
    """A layer's experts. router: [experts, hidden]. gate, up, down: one matrix an expert. Gates and ups are all
    quantised or all of one kind, and so are downs: one kind of operand serves them.
    """

    experts: Experts
    router: Matrix
    gate: tuple[Matrix, ...]
    up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]

    def native(self) -> _Mixture:
        """Valid as long as this object."""
        experts = self.experts
        described = (
            (NativeMatrix * experts.count)(*(matrix.native() for matrix in getattr(self, name))) for name in _OF_EXPERTS
        )
        return _Mixture(experts.count, experts.top_k, experts.normalise_top_k, self.router.native(), *described)


@dataclass(frozen=True)
class LayerWeights:
    """One layer for `WholeStep`. matrices: qkv and output, and of a dense MLP gate, up and down. vectors: norms and
    biases by their target's name (`model.names`). mixture: None for a dense MLP.
    """

    matrices: dict[str, Matrix]
    vectors: dict[str, torch.Tensor]
    mixture: Mixture | None = None


class WholeStep:
    """One range of layers and their cache, as the native code sees them."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Sequence[LayerWeights],
        windows: Sequence[int | None],
        rope: Rope,
        cache: KvCache,
        dtype: torch.dtype,
    ) -> None:
        a = architecture
        self._hidden, self._dtype, self._rope = a.hidden_size, dtype, rope
        # What the pointers point to must live as long as they do.
        self._weights, self._cache = tuple(weights), cache
        self._kept: list[torch.Tensor] = []
        self._layers = (_Layer * len(weights))()
        for layer, own, window, store in zip(self._layers, weights, windows, cache.layers, strict=True):
            vectors = own.vectors
            layer.input_norm = self._float32(vectors["input_norm"])
            layer.mlp_norm = self._float32(vectors["mlp_norm"])
            if "qk_norm" in vectors:
                layer.q_norm = self._float32(vectors["qk_norm"][: a.head_dim])
                layer.k_norm = self._float32(vectors["qk_norm"][a.head_dim :])
            for name in ("qkv_bias", "output_bias", "gate_up_bias", "down_bias"):
                if name in vectors:
                    setattr(layer, name, self._float32(vectors[name]))
            for name, matrix in own.matrices.items():
                setattr(layer, name, matrix.native())
            if own.mixture is not None:
                layer.mixture = ctypes.pointer(own.mixture.native())
            layer.cache = store.data_ptr()
            layer.window = window or 0
        self._library, level = kernels.library()
        self._model = _Model(
            layers=len(weights),
            hidden=a.hidden_size,
            heads=a.attention_heads,
            kv_heads=a.kv_heads,
            head_dim=a.head_dim,
            intermediate=a.intermediate_size,
            slots=cache.blocks * cache.block_tokens,
            block_tokens=cache.block_tokens,
            eps=a.rms_norm_eps,
            scale=a.head_dim**-0.5,
            dtype=KINDS[dtype],
            level=level,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def _float32(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor.float().contiguous())
        return self._kept[-1].data_ptr()

    def run(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """hidden: [tokens, hidden] in the dtype at rest. Returns the same shape and dtype; writes keys and values."""
        x = hidden.float().contiguous()
        if x.data_ptr() == hidden.data_ptr():
            x = x.clone()
        cosine, sine = self._rope.at(torch.from_numpy(step.positions), torch.float32)
        blocks = np.concatenate([sequence.blocks for sequence in step.sequences])
        held = np.array([len(sequence.blocks) for sequence in step.sequences])
        sequence_block = np.cumsum(held) - held
        sequence_row = np.array([sequence.token for sequence in step.sequences] + [step.tokens])
        longest = max(sequence.length for sequence in step.sequences)
        native = _Step(
            rows=step.tokens,
            sequences=len(step.sequences),
            longest=longest,
            position=step.positions.ctypes.data,
            slot=step.slots.ctypes.data,
            blocks=blocks.ctypes.data,
            sequence_row=sequence_row.ctypes.data,
            sequence_block=sequence_block.ctypes.data,
            cosine=cosine.data_ptr(),
            sine=sine.data_ptr(),
        )
        threads = torch.get_num_threads()
        model = ctypes.byref(self._model)
        needed = self._library.lp_scratch(self._layers, model, ctypes.byref(native), threads)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        scratch = self._scratch.data_ptr()
        refused = self._library.lp_layers(x.data_ptr(), self._layers, model, ctypes.byref(native), scratch, threads)
        if refused:
            raise RuntimeError(
                f"the native layers do not take {self._model.head_dim=} {self._model.heads=} {self._model.level=}"
            )
        return x.to(self._dtype)
