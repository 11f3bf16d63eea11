"""Writes the bytecode of what tests import, once, into the virtual environment and the checkout.

pip and uv install sources. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, nobody writes their bytecode:
each worker of pytest, and each process that a test starts, compiles transformers, sympy, torch's front ends and pytest
itself again, which is more CPU time than most tests take. The whole environment would take minutes; this is what is
used of it.
"""

from __future__ import annotations

import compileall
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Small packages whose modules are imported one by one, as they are needed.
WHOLE = ("_pytest", "pluggy", "pytest_timeout", "xdist", "execnet", "hypothesis")
OWN = ("api", "operator", "node", "benchmarks", "tests/support", "tests/cluster")
# What brings the other modules that its importers get.
IMPORTED = (
    "languagepipes_operator.main",
    "languagepipes_operator.cli.main",
    "languagepipes_operator.cli.up.up",
    "languagepipes_node.end_model.main",
    "languagepipes_node.end_model.openai.app",
    "languagepipes_node.model.end",
    "languagepipes_node.model.fallback",
    "languagepipes_node.stage.loop",
    "languagepipes_node.store.main",
    "aiohttp",
    "celpy",
    "httpx",
    "jsonschema",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "matplotlib.ticker",
    "openai",
    "safetensors.torch",
)
# transformers imports a family's module, and much else, with the first model of it.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "olmo2", "gemma3")


def main() -> None:
    sys.dont_write_bytecode = False
    for folder in OWN:
        compileall.compile_dir(ROOT / folder, quiet=1)
    for name in WHOLE:
        compile_package(name)
    for name in IMPORTED:
        importlib.import_module(name)
    for family in FAMILIES:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    answer_with_a_tiny_model()


def compile_package(name: str) -> None:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return  # not installed: its tests cannot run
    for place in spec.submodule_search_locations or ():
        compileall.compile_dir(place, quiet=1)
    compileall.compile_file(spec.origin, quiet=1)


def answer_with_a_tiny_model() -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=1, num_key_value_heads=1)
    AutoModelForCausalLM.from_config(config).generate(torch.tensor([[1]]), max_new_tokens=2, do_sample=False)


if __name__ == "__main__":
    main()
