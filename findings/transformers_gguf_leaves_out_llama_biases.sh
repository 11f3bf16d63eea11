#!/usr/bin/env bash
# Biases of attention in a Llama GGUF file are left out: the model loads, no key is reported, and its logits are others.
#
# Package    transformers 5.24.0, with gguf 0.19.0 and torch 2.15.0.
# Behaviour  A file of architecture llama with blk.N.attn_q.bias and its siblings, which llama.cpp's converter writes for a
#            Llama with attention_bias and which llama.cpp adds, is loaded without them; a file of architecture
#            qwen2 with the same tensors has them.
# Seen       attention_bias False, no parameter with "bias" in its name, logits equal to those of the file without biases, and
#            up to 6 away from those with them; no warning, and no UNEXPECTED line in the load report.
# Source     in transformers/integrations/ggml.py no key leads to attention_bias, so the model is made without; then
#            modeling_gguf_pytorch_utils.py passes over each tensor that has no parameter to go to, before the report counts.
# Effect     Fine-tunes of Llama that have biases answer something else from GGUF than from safetensors.
# Instead    Pass a config with attention_bias=True to from_pretrained.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  transformers==5.24.0 torch==2.15.0 gguf==0.19.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON' 2>&1 | grep -v 'it/s]'
import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

HIDDEN, HEADS, KV_HEADS, HEAD, WIDE, TOKENS = 64, 4, 2, 16, 128, 64


def write(path, *, architecture="llama", name="tiny", more=lambda writer: None, tensors=()):
    """The same two layers in each file; more adds keys, tensors are added."""
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(2)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(TOKENS)])
    more(writer)
    shapes = {"token_embd": (TOKENS, HIDDEN), "output": (TOKENS, HIDDEN)}
    ones = ["output_norm"]
    for layer in range(2):
        parts = {
            "attn_q": (HEADS * HEAD, HIDDEN), "attn_k": (KV_HEADS * HEAD, HIDDEN), "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD), "ffn_gate": (WIDE, HIDDEN), "ffn_up": (WIDE, HIDDEN),
            "ffn_down": (HIDDEN, WIDE),
        }
        shapes |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
        ones += [f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm"]
    for tensor, shape in shapes.items():
        writer.add_tensor(f"{tensor}.weight", (draw.standard_normal(shape) * 0.2).astype(np.float32))
    for tensor in ones:
        writer.add_tensor(f"{tensor}.weight", np.ones(HIDDEN, np.float32))
    for tensor, values in dict(tensors).items():
        writer.add_tensor(tensor, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path):
    return AutoModelForCausalLM.from_pretrained(".", gguf_file=path, dtype=torch.float32).eval()


@torch.inference_mode()
def logits(model, length):
    return model(torch.arange(length)[None] * 7 % TOKENS).logits[0]


SIZES = {"attn_q": HEADS * HEAD, "attn_k": KV_HEADS * HEAD, "attn_v": KV_HEADS * HEAD, "attn_output": HIDDEN}
biases = {f"blk.{layer}.{part}.bias": np.full(size, 0.5) for layer in range(2) for part, size in SIZES.items()}
write("without.gguf")
write("with.gguf", tensors=biases)
without, biased = load("without.gguf"), load("with.gguf")
named = [name for name, _ in biased.named_parameters() if "bias" in name]
print("llama: attention_bias", biased.config.attention_bias, "- parameters of biases:", len(named))
assert not named, "changed: the biases are loaded"
assert torch.equal(logits(without, 50), logits(biased, 50)), "changed: the biases make a difference"

config = type(biased.config).from_dict(biased.config.to_dict() | {"attention_bias": True})
meant = AutoModelForCausalLM.from_pretrained(".", gguf_file="with.gguf", config=config, dtype=torch.float32).eval()
named = [name for name, _ in meant.named_parameters() if "bias" in name]
away = float((logits(meant, 50) - logits(biased, 50)).abs().max())
print(f"with a config that says so: {len(named)} of them, logits up to {away:.2f} away")
assert len(named) == 8, "changed: a config does not bring them"
assert away > 0.1, "changed: they make no difference"

write("qwen2.gguf", architecture="qwen2", tensors={name: values for name, values in biases.items() if "output" not in name})
assert any("bias" in name for name, _ in load("qwen2.gguf").named_parameters()), "changed: qwen2 has none either"
print("as found: the biases of a llama file are left out without a word")
PYTHON
