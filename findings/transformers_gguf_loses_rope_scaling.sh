#!/usr/bin/env bash
# A GGUF file's RoPE scaling is not read by transformers: the model computes with unscaled positions, and nothing is said.
#
# Package    transformers 5.24.0, with gguf 0.19.0 and torch 2.15.0.
# Behaviour  A Llama file that states rope.scaling.type yarn, a factor and the original context, or that holds the factors of
#            Llama 3.1 in the tensor rope_freqs.weight, as llama.cpp's converter writes it, is loaded as if it had neither:
#            rope_type is "default", while max_position_embeddings is the extended context.
# Seen       The logits of all three files are equal bit for bit, and up to 6 away from those of the same weights with yarn; no
#            warning, and no line in the load report.
# Source     in transformers/integrations/ggml.py the tables of keys have rope.freq_base and rope.dimension_count and none of
#            rope.scaling; only for gpt-oss does modeling_gguf_pytorch_utils.py read it by code of its own. A tensor
#            whose name is not in the map of tensors is passed over there.
# Effect     Llama 3.1 and later from GGUF, and any model whose context was extended, answer worse with the length of the
#            text, and otherwise than llama.cpp does from the same file.
# Instead    Set config.rope_parameters from the file's keys or the original config.json before the model is made.
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


def yarn(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(2048)


write("plain.gguf")
write("yarn.gguf", more=yarn)
write("factors.gguf", tensors={"rope_freqs.weight": np.linspace(1, 8, HEAD // 2)})
plain, scaled, factors = load("plain.gguf"), load("yarn.gguf"), load("factors.gguf")
for model in (plain, scaled, factors):
    print("rope_parameters:", model.config.rope_parameters, "context:", model.config.max_position_embeddings)
    assert model.config.rope_parameters["rope_type"] == "default", "changed: the scaling is read"
assert torch.equal(logits(plain, 300), logits(scaled, 300)), "changed: the keys make a difference"
assert torch.equal(logits(plain, 300), logits(factors, 300)), "changed: rope_freqs.weight makes a difference"

# What the keys stand for, in transformers' own terms.
config = type(plain.config).from_dict(plain.config.to_dict())
config.rope_parameters = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "rope_theta": 10000.0
}
meant = type(plain)(config).eval()
meant.load_state_dict(plain.state_dict())
away = float((logits(meant, 300) - logits(scaled, 300)).abs().max())
print(f"the same weights with yarn: logits up to {away:.2f} away")
assert away > 0.1, "changed: the scaling is in force"
print("as found: RoPE scaling and rope_freqs.weight are left out without a word")
PYTHON
