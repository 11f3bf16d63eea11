"""The two models that are measured, as safetensors directories that every contender reads.

SmolLM2-135M-Instruct comes from the GGUF file that `make model` fetches, read by transformers and written as bfloat16.
The Qwen3-0.6B shape has the published configuration and random weights, for what it costs does not depend on what it
says. Its tokenizer is SmolLM2's, filled up with made-up entries to Qwen3's vocabulary, so that every id a random model
can choose has a text and a stream shows each token.

Importing this module is cheap; building a model imports transformers, so `python -m benchmarks.models NAME` does it in
a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
MODELS = CACHE / "models"
GGUF = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"
_SEED = 20260101


@dataclass(frozen=True)
class BenchmarkModel:
    """One model to measure: `directory` holds bfloat16 safetensors, config.json, tokenizer.json and its template."""

    name: str
    title: str
    directory: Path

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors at rest."""
        return sum(file.stat().st_size for file in self.directory.glob("*.safetensors"))


SMOLLM2 = BenchmarkModel("smollm2", "SmolLM2-135M-Instruct", MODELS / "bench-smollm2")
QWEN3 = BenchmarkModel("qwen3-0.6b", "Qwen3-0.6B shape, random weights", MODELS / "bench-qwen3-0.6b")
MODELS_BY_NAME = {model.name: model for model in (SMOLLM2, QWEN3)}


class ModelMissing(RuntimeError):
    """A model could not be made; the message says what to run first."""


def ensure(name: str) -> BenchmarkModel:
    """The named model, made if it is not there yet. Raises ModelMissing if its source is not here."""
    model = MODELS_BY_NAME[name]
    if not (model.directory / "config.json").exists():
        print(f"Making {model.title} in {model.directory.relative_to(ROOT)}", file=sys.stderr, flush=True)
        result = subprocess.run([sys.executable, "-m", "benchmarks.models", name], cwd=ROOT, check=False)
        if result.returncode != 0:
            raise ModelMissing(f"{model.title} could not be made; see the message above")
    return model


def _make_smollm2(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not GGUF.exists():
        raise SystemExit(f"{GGUF.relative_to(ROOT)} is missing: run `make model` first")
    source = {"pretrained_model_name_or_path": str(GGUF.parent), "gguf_file": GGUF.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).to(torch.bfloat16)
    # transformers refuses to save what it calls quantized, though the tensors have long been ordinary ones.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**source).save_pretrained(directory)


def _make_qwen3(directory: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer_source = ensure(SMOLLM2.name).directory
    # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=151643,
        eos_token_id=151645,
        dtype="bfloat16",
    )
    torch.manual_seed(_SEED)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(directory)

    for name in ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (tokenizer_source / name).exists():
            shutil.copy(tokenizer_source / name, directory / name)
    tokenizer = json.loads((tokenizer_source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    taken = set(vocabulary.values()) | {token["id"] for token in tokenizer["added_tokens"]}
    # No merge leads to these, so no prompt contains them; only decoding meets them.
    vocabulary.update({f"~{token}": token for token in range(config.vocab_size) if token not in taken})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))


def main() -> None:
    """Make the model named on the command line, whole or not at all."""
    model = MODELS_BY_NAME[sys.argv[1]]
    unfinished = model.directory.with_name(model.directory.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    {SMOLLM2.name: _make_smollm2, QWEN3.name: _make_qwen3}[model.name](unfinished)
    unfinished.rename(model.directory)


if __name__ == "__main__":
    main()
