#!/usr/bin/env bash
# Importing torch.nn.attention.bias, for a mask that eager code uses, imports the compiler: TorchDynamo and Triton.
#
# Package    torch 2.15.0 (the build on PyPI).
# Behaviour  `import torch` loads neither torch._dynamo nor triton, and torch.nn.attention loads nothing more. Its module
#            bias, which has causal_lower_right for scaled_dot_product_attention, loads both, and some 900 modules.
# Seen       891 more modules and 1.0 s of processor time, where all of `import torch` takes about 3 s.
# Source     in torch/nn/attention/bias.py, at the level of the module, four functions are given to
#            torch._dynamo.allow_in_graph; torch._dynamo is loaded lazily by torch's own __getattr__, so this loads it.
# Effect     A program that compiles nothing pays for it at each start, in each process, and holds the memory.
# Instead    Import it inside the branch that needs the mask, or pass is_causal where query and key lengths are equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.15.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time

import torch
import torch.nn.attention

compiler = ("torch._dynamo", "triton")
assert not any(name in sys.modules for name in compiler), "changed: import torch loads the compiler itself"
print("import torch, torch.nn.attention: neither of", *compiler)
before, began = len(sys.modules), time.process_time()
from torch.nn.attention.bias import causal_lower_right  # noqa: E402

seconds, more = time.process_time() - began, len(sys.modules) - before
print(f"torch.nn.attention.bias: {more} more modules, {seconds:.1f} s of processor time")
assert "torch._dynamo" in sys.modules, "changed: the module no longer loads TorchDynamo"
assert "triton" in sys.modules, "changed: the module no longer loads Triton"
assert more > 300, "changed: it loads little"
query, keys = torch.ones(1, 1, 2, 8), torch.ones(1, 1, 4, 8)
answer = torch.nn.functional.scaled_dot_product_attention(query, keys, keys, attn_mask=causal_lower_right(2, 4))
assert answer.shape == (1, 1, 2, 8)
print("as found: a mask for eager attention loads the compiler")
PYTHON
