#!/usr/bin/env bash
# A four-bit tensor that safetensors writes is read back whole from a file, but neither in slices nor from bytes.
#
# Packages   safetensors 0.8.0, torch 2.15.0, numpy 2.4.6.
# Behaviour  torch.float4_e2m1fn_x2 (two numbers a byte) is saved as dtype F4 with twice the columns, which the format asks for. `load_file`
#            halves them again and gives the tensor back. `get_slice` of the same file says the doubled shape, and every index into it, even
#            `[:]`, raises RuntimeError. `safetensors.torch.load`, the counterpart of `save`, raises KeyError for F4, and for F8_E8M0 too, the scales
#            that MX formats have beside it, whose slices work.
# Seen       shape (2, 8) saved and loaded; [2, 16] told; "shape '[2, 16]' is invalid for input of size 16"; KeyError 'F4', KeyError 'F8_E8M0'.
# Source     the Rust binding halves the last dimension where it makes a whole tensor, not where it makes a slice; the table of dtypes in
#            safetensors/torch.py that `load` uses has neither name, the one that `save` uses has both.
# Effect     Loaders that read a part of each matrix (tensor or layer sharding) fail on MXFP4 and NVFP4 checkpoints that `load_file` reads, and so does a
#            test that saves to memory.
# Instead    Store such weights as uint8 with a name that says so, as published MXFP4 checkpoints do, or load whole tensors from a file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/x.safetensors" <<'PYTHON'
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file

path = sys.argv[1]


def attempt(act) -> object:
    """The shape that comes out, or the error."""
    try:
        return tuple(act().shape)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


seen = {}
for name in ("float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2"):
    tensor = torch.arange(16, dtype=torch.uint8).reshape(2, 8).view(getattr(torch, name))
    save_file({"x": tensor}, path)
    whole = load_file(path)["x"]
    assert whole.dtype == tensor.dtype and torch.equal(whole.view(torch.uint8), tensor.view(torch.uint8)), name
    with safe_open(path, "pt") as file:
        part = file.get_slice("x")
        seen[name] = (
            part.get_shape(),
            attempt(lambda: part[:1]),
            attempt(lambda: part[:]),
            attempt(lambda: load(save({"x": tensor}))["x"]),
        )
    print(f"{name} of shape {tuple(tensor.shape)}: told, [:1], [:], load(save()) -> {seen[name]}")

assert seen["float8_e4m3fn"] == ([2, 8], (1, 8), (2, 8), (2, 8)), "changed: eight bits"
assert seen["float8_e8m0fnu"] == ([2, 8], (1, 8), (2, 8), "KeyError: 'F8_E8M0'"), "changed: F8_E8M0"
shape, first, every, loaded = seen["float4_e2m1fn_x2"]
assert shape == [2, 16], "changed: the shape that is told"
assert str(first).startswith("RuntimeError: shape '[2, 16]' is invalid"), "changed: a slice"
assert every == first, "changed: a slice of everything"
assert loaded == "KeyError: 'F4'", "changed: load"
print("as found: four-bit tensors come back from load_file alone")
PYTHON
