#!/usr/bin/env bash
# A Llama GGUF file whose name is exactly "mistral" does not load in transformers; named "Mistral 7B Instruct v0.3" it does.
#
# Package    transformers 5.24.0, with gguf 0.19.0 and torch 2.15.0.
# Behaviour  Two files of architecture llama differ in general.name alone. The config of the one is a MistralConfig, with a
#            sliding window of 4,096 tokens that the file does not state, and loading its weights raises NotImplementedError,
#            which blames an old gguf package. The other is a LlamaForCausalLM without a window.
# Seen       As stated; every other name that was tried leads to LlamaConfig, those with "mistral" in them too.
# Source     in transformers/modeling_gguf_pytorch_utils.py "mistral" is looked up in the value of general.name, which is a list
#            with one string by then, so that only the whole name matches; the class it leads to has a window by default, and
#            gguf's names of tensors know no architecture mistral.
# Effect     The branch that was meant for all of Mistral's files is taken by none that people publish, and fails where it is taken.
# Instead    Rename the model in the file (gguf_set_metadata), or pass a LlamaConfig.
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


from transformers import AutoConfig

write("exact.gguf", name="mistral")
for number, name in enumerate(["Mistral 7B Instruct v0.3", "mistral-7b", "Mistral", "tiny"]):
    write(f"other-{number}.gguf", name=name)
    model = load(f"other-{number}.gguf")
    print(f"{name}: {type(model).__name__}, sliding_window {getattr(model.config, 'sliding_window', None)}")
    assert type(model).__name__ == "LlamaForCausalLM", "changed: another name leads to another class"
    assert torch.isfinite(logits(model, 20)).all()
config = AutoConfig.from_pretrained(".", gguf_file="exact.gguf")
print(f"mistral: {type(config).__name__}, sliding_window {config.sliding_window}")
assert (type(config).__name__, config.sliding_window) == ("MistralConfig", 4096), "changed: the name is one like others"
try:
    load("exact.gguf")
except NotImplementedError as error:
    print("mistral: NotImplementedError:", str(error).split(".")[0])
else:
    raise SystemExit("changed: it loads")
print("as found: the name of the file's model decides whether it loads")
PYTHON
