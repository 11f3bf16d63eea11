"""What the unsplit model answers, by transformers' own code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

from support.paths import ROOT

QUESTIONS = [
    "What is the capital of France?",
    "Name three primary colours.",
    "Write one sentence about the sea.",
]


def answers(model_file: Path) -> list[str]:
    """The greedy answers to QUESTIONS, at most 40 tokens each, in float32, read from the same GGUF file. They are kept
    beside the model for other tests, until this file, the model's or the versions change.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "gguf")]
    size = model_file.stat().st_size
    asked = json.dumps([Path(__file__).read_text(), model_file.name, size, versions])
    kept = ROOT / ".cache" / "models" / f"greedy-answers-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        found: list[str] = json.loads(kept.read_text())
        return found
    found = _answers(model_file)
    kept.write_text(json.dumps(found))
    return found


def _answers(model_file: Path) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_file.parent, gguf_file=model_file.name)
    model = AutoModelForCausalLM.from_pretrained(model_file.parent, gguf_file=model_file.name, dtype=torch.float32)
    found = []
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**ids, max_new_tokens=40, do_sample=False)
        found.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found
