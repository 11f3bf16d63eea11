"""A tiny Llama as the files of a repository, and a store that fills its shelf in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from languagepipes_node.store.cache import Cache
from languagepipes_node.store.downloader import Downloader
from languagepipes_node.store.sources import open_source
from languagepipes_node.store.state import StoreState
from safetensors.numpy import save

LAYERS, HIDDEN, HEADS, INNER, VOCABULARY = 3, 32, 4, 64, 96
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def repository(seed: int = 0, *, shards: int = 1, extra: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """What a Hub repository of this model holds, with files that must not be fetched."""
    values = tensors(seed)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "README.md": b"# never fetched",
        "pytorch_model.bin": b"never fetched either",
        "onnx/model.safetensors": b"nor this",
    }
    names = sorted(values)
    if shards == 1:
        files["model.safetensors"] = save(values)
    else:
        parts = [names[number::shards] for number in range(shards)]
        titles = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
        for title, part in zip(titles, parts, strict=True):
            files[title] = save({name: values[name] for name in part})
        weight_map = {name: title for title, part in zip(titles, parts, strict=True) for name in part}
        files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
        files["consolidated.safetensors"] = b"a second copy, never fetched"
    return files | (extra or {})


def fetched_names(files: dict[str, bytes]) -> set[str]:
    unwanted = ("README.md", "pytorch_model.bin", "onnx/model.safetensors", "consolidated.safetensors")
    return set(files) - set(unwanted)


def fill(
    url: str,
    cache: Path,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    token_file: Path | None = None,
    volumes_dir: Path | None = None,
    attempts: int = 50,
    on_progress: Callable[[StoreState], None] = lambda store_state: None,
) -> StoreState:
    """Fill a shelf to its end, without waiting between attempts; gives up after `attempts` pauses."""
    store_state, pauses = StoreState(), [0]

    def wait(seconds: float) -> bool:
        pauses[0] += seconds > 0
        time.sleep(min(seconds, 0.001))
        return pauses[0] > attempts

    source = open_source(url, revision, token_file=token_file, volumes_dir=volumes_dir)
    downloader = Downloader(
        source, Cache(cache), store_state, dtype=dtype, wait=wait, on_progress=lambda: on_progress(store_state)
    )
    downloader.run()
    return store_state
