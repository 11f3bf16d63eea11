"""A step of few rows through a range of layers in one native call (`lp_layers` in node/native/kernels.c).

For a handful of rows, calling torch a dozen times a layer costs more than computing. Arithmetic is float32 whatever the
dtype at rest. It serves dense layers with a SiLU MLP on a CPU; whether it is faster for so many rows is measured at
start-up by whoever uses it (`model.stack`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from languagepipes_node.model import kernels
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.model.kv import KvCache
from languagepipes_node.model.rope import Rope
from languagepipes_node.model.step import Step

_MOST_LAYERS, _MOST_GROUP, _MOST_HEAD_DIM = 256, 32, 1024
_POINTER = ctypes.c_void_p


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("input_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, _POINTER) for name in ("qkv_bias", "output_bias", "gate_up_bias", "down_bias")),
        *((name, _POINTER) for name in ("qkv", "output", "gate_up", "down")),
        ("cache", _POINTER),
        ("window", ctypes.c_int64),
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
        ("rows", ctypes.c_int64),
        ("longest", ctypes.c_int64),
        *((name, _POINTER) for name in ("position", "slot", "blocks", "block_start", "cosine", "sine")),
    ]


def serves(architecture: Architecture, device: torch.device) -> bool:
    """Whether `WholeStep` can run this architecture's layers here."""
    a = architecture
    return (
        device.type == "cpu"
        and kernels.available()
        and a.activation == "silu"
        and not any(a.sparse_layers)
        and a.head_dim % 16 == 0
        and a.head_dim <= _MOST_HEAD_DIM
        and a.layer_count <= _MOST_LAYERS
        and a.attention_heads // a.kv_heads <= _MOST_GROUP
    )


class WholeStep:
    """One range of layers, their cache and their packed weights (`model.names`), as the native code sees them."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Sequence[dict[str, torch.Tensor]],
        windows: Sequence[int | None],
        rope: Rope,
        cache: KvCache,
        dtype: torch.dtype,
    ) -> None:
        a = architecture
        self._hidden, self._dtype, self._rope = a.hidden_size, dtype, rope
        # What the pointers point to must live as long as they do.
        self._kept: list[torch.Tensor] = [tensor for layer in weights for tensor in layer.values()] + list(cache.layers)
        self._layers = (_Layer * len(weights))()
        for layer, packed, window, store in zip(self._layers, weights, windows, cache.layers, strict=True):
            layer.input_norm = self._float32(packed["input_norm"])
            layer.mlp_norm = self._float32(packed["mlp_norm"])
            if "qk_norm" in packed:
                layer.q_norm = self._float32(packed["qk_norm"][: a.head_dim])
                layer.k_norm = self._float32(packed["qk_norm"][a.head_dim :])
            for name in ("qkv", "output", "gate_up", "down"):
                setattr(layer, name, packed[name].data_ptr())
                if f"{name}_bias" in packed:
                    setattr(layer, f"{name}_bias", self._float32(packed[f"{name}_bias"]))
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
            dtype=kernels.DTYPE_CODES[dtype],
            level=level,
        )
        self._scratch = torch.empty(0)

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
        counts = np.array([sequence.count for sequence in step.sequences])
        block_start = np.repeat(np.cumsum(held) - held, counts)
        longest = max(sequence.length for sequence in step.sequences)
        native = _Step(
            rows=step.tokens,
            longest=longest,
            position=step.positions.ctypes.data,
            slot=step.slots.ctypes.data,
            blocks=blocks.ctypes.data,
            block_start=block_start.ctypes.data,
            cosine=cosine.data_ptr(),
            sine=sine.data_ptr(),
        )
        threads = torch.get_num_threads()
        needed = self._library.lp_scratch(ctypes.byref(self._model), step.tokens, longest, threads)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed)
        refused = self._library.lp_layers(
            x.data_ptr(),
            self._layers,
            ctypes.byref(self._model),
            ctypes.byref(native),
            self._scratch.data_ptr(),
            threads,
        )
        if refused:
            raise RuntimeError(f"the native layers do not take {self._model.head_dim=} {self._model.heads=}")
        return x.to(self._dtype)
