"""`python -m languagepipes_node facts`: a model's facts as JSON, from headers and small files. Starts no server."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from languagepipes_api.facts import ModelFacts

from languagepipes_node.store.cache import Cache
from languagepipes_node.store.selection import RangeReader, inspect_model, select
from languagepipes_node.store.sources import RemoteSource, open_source
from languagepipes_node.weights.errors import WeightsError

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str]) -> int:
    """Prints {"facts": …} and returns 0, or {"error": {"reason", "message"}} and 1. Wrong arguments: 2."""
    parser = argparse.ArgumentParser(prog="languagepipes-node facts", description="Print a model's facts as JSON.")
    parser.add_argument("--source", required=True, help="hf://, pvc://, https:// or file://")
    parser.add_argument("--revision")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--cache-dir", type=Path, help="reuse and keep what is resolved here")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--volumes-dir", type=Path, help="where the claims of pvc:// are mounted")
    arguments = parser.parse_args(argv)
    try:
        facts = read_model_facts(
            arguments.source,
            arguments.revision,
            dtype=arguments.dtype,
            cache_dir=arguments.cache_dir,
            token_file=arguments.token_file,
            volumes_dir=arguments.volumes_dir,
        )
    except WeightsError as error:
        print(json.dumps({"error": error.to_json()}))
        return 1
    print(json.dumps({"facts": facts.to_json()}))
    return 0


def read_model_facts(
    url: str,
    revision: str | None,
    *,
    dtype: str | None = None,
    cache_dir: Path | None = None,
    token_file: Path | None = None,
    volumes_dir: Path | None = None,
) -> ModelFacts:
    """One attempt. Raises WeightsError."""
    source = open_source(url, revision, token_file=token_file, volumes_dir=volumes_dir)
    cache = Cache(cache_dir) if cache_dir is not None else None
    snapshot = None
    if cache is not None and isinstance(source, RemoteSource):
        snapshot = cache.pinned(source.url, source.revision)
    if snapshot is None:
        snapshot = source.resolve()
        if cache is not None and isinstance(source, RemoteSource):
            cache.pin(source.url, source.revision, snapshot)
    selection = select(source, snapshot, cache)
    _, facts = inspect_model(RangeReader(source, cache, snapshot), selection, snapshot, dtype)
    return facts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
