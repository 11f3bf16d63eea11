"""Tensors as bytes and bytes as tensors, without copies on a CPU: hidden states between torch and the wire."""

from __future__ import annotations

import torch

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tensor_from(data: memoryview, *, dtype: torch.dtype, width: int, device: torch.device) -> torch.Tensor:
    """[tokens, width] over `data`'s bytes: a view of them on a CPU, a copy on any other device."""
    tensor = torch.frombuffer(data, dtype=dtype).view(-1, width) if len(data) else torch.empty(0, width, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The raw little-endian bytes of `tensor`, row-major: a view if it is contiguous and on a CPU, else of a copy."""
    flat = tensor.detach().to("cpu").contiguous()
    return flat.view(torch.uint8).numpy().reshape(-1).data  # flat: a cast refuses zero rows
