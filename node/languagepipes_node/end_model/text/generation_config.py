"""How a model's makers want it sampled where a request does not say: generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from languagepipes_node.end_model.requests import LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY
from languagepipes_node.end_model.text.model_files import Files, json_object

log = logging.getLogger(__name__)

_FILE = "generation_config.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """Values for parameters that a request leaves out. Without a generation_config.json they are OpenAI's.

    max_tokens: the longest answer; None: what the context leaves.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None

    @classmethod
    def read(cls, files: Files) -> SamplingDefaults:
        """Those of the model's generation_config.json, as vLLM's `--generation-config auto` reads them. A value that no
        request could have is left out, and reported.

        files: a named file's bytes, or KeyError. Raises TokenizerError for a file that is no JSON object.
        """
        found: dict[str, Any] = {}
        config = json_object(files, _FILE)
        for name, (field, allowed) in _READ.items():
            value = config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
                log.warning("%s: %s is %r, which is no value for %s; it is not used", _FILE, name, value, field)
                continue
            found[field] = value
        return cls(**found)


# Of the file: the field, and what a request may ask for.
_READ: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("temperature", lambda value: 0 <= value <= 2),
    "top_p": ("top_p", lambda value: 0 <= value <= 1),
    "top_k": ("top_k", lambda value: isinstance(value, int) and value >= -1),
    "min_p": ("min_p", lambda value: 0 <= value <= 1),
    "repetition_penalty": (
        "repetition_penalty",
        lambda value: LEAST_REPETITION_PENALTY <= value <= MOST_REPETITION_PENALTY,
    ),
    "max_new_tokens": ("max_tokens", lambda value: isinstance(value, int) and value >= 1),
}
