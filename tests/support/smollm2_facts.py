"""What a weights store tells of SmolLM2-135M."""

from __future__ import annotations

from languagepipes_api.facts import LayerFacts, ModelFacts

FACTS = ModelFacts(
    revision="c0ffee",
    family="llama",
    layers=(LayerFacts(3_540_096, 3_540_096),) * 30,
    hidden_size=576,
    vocabulary_size=49_152,
    attention_heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    embedding_parameters=576 * 49_152,
    head_parameters=576 * 49_152,
    norm_parameters=576,
    tied_embeddings=True,
    max_position=8192,
    stored_dtype="bfloat16",
    download_bytes=270_000_000,
)
