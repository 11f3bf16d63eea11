"""Facts of well-known shapes, and specs in one line."""

from __future__ import annotations

from typing import Any

from languagepipes_api.facts import LayerFacts, ModelFacts
from languagepipes_api.spec import PipeSpec, parse_pipe

GIB = 2**30


def facts(
    layers: list[LayerFacts],
    *,
    hidden: int,
    vocabulary: int,
    heads: tuple[int, int, int],
    intermediate: int,
    tied: bool,
    family: str = "qwen3",
    max_position: int = 40_960,
    stored: str = "bfloat16",
) -> ModelFacts:
    matrix = hidden * vocabulary
    return ModelFacts(
        revision="c0ffee",
        family=family,
        layers=tuple(layers),
        hidden_size=hidden,
        vocabulary_size=vocabulary,
        attention_heads=heads[0],
        kv_heads=heads[1],
        head_dim=heads[2],
        intermediate_size=intermediate,
        embedding_parameters=matrix,
        head_parameters=matrix,
        norm_parameters=hidden,
        tied_embeddings=tied,
        max_position=max_position,
        stored_dtype=stored,
        download_bytes=0,
    )


def dense(count: int, parameters: int) -> list[LayerFacts]:
    return [LayerFacts(parameters, parameters)] * count


SMOLLM2 = facts(
    dense(30, 3_540_096), hidden=576, vocabulary=49_152, heads=(9, 3, 64), intermediate=1536, tied=True,
    family="llama", max_position=8192,
)  # fmt: skip
QWEN3_06B = facts(
    dense(28, 15_730_944), hidden=1024, vocabulary=151_936, heads=(16, 8, 128), intermediate=3072, tied=True
)
QWEN3_8B = facts(
    dense(36, 192_946_432), hidden=4096, vocabulary=151_936, heads=(32, 8, 128), intermediate=12_288, tied=False
)
# 128 experts of which 8 are read for a token; the first layer is dense.
MOE = facts(
    [LayerFacts(40_000_000, 40_000_000), *[LayerFacts(620_000_000, 57_000_000)] * 23],
    hidden=2048, vocabulary=151_936, heads=(32, 4, 128), intermediate=6144, tied=False, family="qwen3_moe",
)  # fmt: skip


def spec(stages: Any, *, model: Any = None, end: Any = None, server: Any = None, replicas: int = 1) -> PipeSpec:
    """A valid spec: stages is a count, a list of entries, or the whole field."""
    if not isinstance(stages, dict):
        stages = {"list": stages} if isinstance(stages, list) else {"count": stages}
    resource = {
        "apiVersion": "languagepipes.io/v1alpha1",
        "kind": "LanguagePipe",
        "metadata": {"name": "pipe"},
        "spec": {
            "model": {"source": "hf://a/b", **(model or {})},
            "endModel": end or {},
            "stages": stages,
            "server": server or {},
            "replicas": replicas,
        },
    }
    return parse_pipe(resource, local=False).spec
