"""A model's facts without a running store: asked of a node process, since only the node reads weight files.

FactsError      the model cannot be read; carries the node's reason and message
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from languagepipes_api.facts import ModelFacts
from languagepipes_api.spec import ModelSpec


class FactsError(Exception):
    """reason: one CamelCase word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def read_facts(model: ModelSpec, *, cache_dir: Path | None = None, token_file: Path | None = None) -> ModelFacts:
    """Headers and small files are fetched, weights are not; it takes as long as the source does. Raises
    FactsError.
    """
    command = [
        sys.executable,
        "-m",
        "languagepipes_node",
        "facts",
        "--source",
        model.source,
        "--dtype",
        model.dtype,
    ]
    if model.resolved_from is not None:
        command += ["--revision", model.resolved_from]
    if cache_dir is not None:
        command += ["--cache-dir", str(cache_dir)]
    if token_file is not None:
        command += ["--token-file", str(token_file)]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(finished.stdout)
        if "error" in answer:
            raise FactsError(answer["error"]["reason"], answer["error"]["message"])
        return ModelFacts.from_json(answer["facts"])
    except (ValueError, KeyError, TypeError) as error:
        said = finished.stderr.strip().splitlines()
        last = said[-1] if said else "it said nothing"
        remedy = '; install the node with pip install "languagepipes[node]"' if "No module named" in last else ""
        raise FactsError(
            "NodeFailed",
            f"the node process that reads {model.source} ended with {finished.returncode}: {last}{remedy}",
        ) from error
