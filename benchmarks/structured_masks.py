"""What a grammar costs: compiling it, and the mask of one row at a vocabulary of 151,669 tokens.

    python -m benchmarks.structured_masks [--xgrammar]

The vocabulary is SmolLM2's 49,152 tokens and pairs of its commonest ones, so that its size is that of Qwen's. Texts are
followed token by token (longest match first); each step is a mask as `MatcherState` makes it, its application to a row
of float32 logits, and the grammar's advance. --xgrammar: the same with xgrammar, where that is installed.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from languagepipes_node.end_model.structured import Constraint
from languagepipes_node.end_model.structured.compiler import Grammars
from languagepipes_node.end_model.text import TextCodec
from languagepipes_node.weights.gguf_convert import convert

ENTRIES = 151_669
SPECIAL = 26
MODEL = Path(__file__).resolve().parent.parent / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string", "maxLength": 40}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"enum": ["new", "returning", "blocked"]}},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "email", "address", "tags", "notes"],
    "additionalProperties": False,
}


class Vocabulary:
    """Stands for a model's text side: the bytes of each token, the last ones special, and one that ends an answer."""

    def __init__(self) -> None:
        directory = MODEL.parent / "smollm2-float32"
        convert(MODEL, directory, dtype="float32")
        codec = TextCodec.load(lambda name: _read(directory / name))
        tokens, special = codec.spelling()
        known = [token for place, token in enumerate(tokens) if place not in special and token]
        randomness = random.Random(1)
        seen = dict.fromkeys(known)
        while len(seen) < ENTRIES - SPECIAL:
            seen.setdefault(randomness.choice(known[:8000]) + randomness.choice(known[:8000]))
        self.tokens = [*seen, *(f"<|special_{place}|>".encode() for place in range(SPECIAL))]
        self.stop_token_ids = frozenset({ENTRIES - 1})
        self._ids = {token: place for place, token in enumerate(self.tokens[:-SPECIAL])}
        self._longest = max(map(len, self._ids))

    def spelling(self) -> tuple[list[bytes], frozenset[int]]:
        return self.tokens, frozenset(range(ENTRIES - SPECIAL, ENTRIES))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        data, ids = text.encode(), []
        while data:
            length = next(n for n in range(min(self._longest, len(data)), 0, -1) if data[:n] in self._ids)
            ids.append(self._ids[data[:length]])
            data = data[length:]
        return ids


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise KeyError(path.name) from None


def people(count: int) -> Iterator[dict[str, Any]]:
    randomness = random.Random(2)
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "and",
        "runs",
        "away",
        "quickly",
        "into",
        "größere",
        "Wälder",
        "東京",
    ]

    def sentence() -> str:
        return " ".join(randomness.choices(words, k=12))

    for number in range(count):
        yield {
            "name": sentence()[:30],
            "age": number,
            "email": f"person.{number}@example.com",
            "address": {"street": sentence()[:20], "city": "New York"},
            "tags": randomness.choices(["new", "returning"], k=2),
            "notes": [sentence() for _ in range(4)],
        }


def cases() -> list[tuple[str, Constraint, list[str]]]:
    texts = [json.dumps(person, ensure_ascii=False) for person in people(8)]
    numbers = [f"{place:03}-ab{place}" for place in range(8)]
    return [
        ("json_object", Constraint.json_object(), texts),
        ("schema", Constraint.json_schema(PERSON), texts),
        ("regex", Constraint.regex(r"[0-9]{3}-[a-z]+[0-9]"), numbers),
        (
            "choice of 1000",
            Constraint.choice([f"answer number {place}" for place in range(1000)]),
            ["answer number 7"] * 8,
        ),
    ]


def shown(name: str, seconds: list[float]) -> str:
    p50, p90, p99 = (float(np.percentile(seconds, at)) * 1e3 for at in (50, 90, 99))
    return (
        f"{name:34} p50 {p50:7.3f}  p90 {p90:7.3f}  p99 {p99:7.3f}  max {max(seconds) * 1e3:7.3f} ms  ({len(seconds)})"
    )


def follow(
    name: str,
    texts: list[list[int]],
    start: Callable[[], Any],
    step: Callable[[Any, Any, int, list[list[float]]], None],
) -> None:
    """Each text twice: first with a grammar that nobody has used yet."""
    row = np.zeros(ENTRIES, np.float32)
    for label in ("cold", "warm"):
        seconds: list[list[float]] = [[], [], []]
        for tokens in texts:
            state = start()
            for token in tokens:
                row[:] = 0.0
                step(state, row, token, seconds)
        for part, values in zip(("mask", "apply", "advance"), seconds, strict=True):
            print(shown(f"{name}, {label}: {part}", values))


def with_llguidance(vocabulary: Vocabulary) -> None:
    began = time.perf_counter()
    grammars = Grammars(vocabulary, known_ids=ENTRIES)  # type: ignore[arg-type]
    grammars.compile(Constraint.json_schema({"type": "null"}))
    print(f"llguidance: vocabulary of {ENTRIES} entries read in {time.perf_counter() - began:.2f} s")

    def step(state: Any, row: Any, token: int, seconds: list[list[float]]) -> None:
        times = [time.perf_counter()]
        forbidden = state.mask()
        times.append(time.perf_counter())
        np.copyto(row, -np.inf, where=forbidden)
        times.append(time.perf_counter())
        assert not forbidden[token]
        state.accept(token)
        times.append(time.perf_counter())
        for place in range(3):
            seconds[place].append(times[place + 1] - times[place])

    for name, constraint, texts in cases():
        began = time.perf_counter()
        grammar = grammars.compile(constraint)
        print(f"{name}: compiled in {(time.perf_counter() - began) * 1e3:.1f} ms")
        tokens = [vocabulary.encode(text) for text in texts]
        follow(name, tokens, lambda: grammar.start(vocabulary.stop_token_ids), step)  # noqa: B023


def with_xgrammar(vocabulary: Vocabulary) -> None:
    import torch
    import xgrammar

    began = time.perf_counter()
    info = xgrammar.TokenizerInfo(
        vocabulary.tokens, xgrammar.VocabType.RAW, vocab_size=ENTRIES, stop_token_ids=sorted(vocabulary.stop_token_ids)
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=2)
    print(f"xgrammar: vocabulary of {ENTRIES} entries read in {time.perf_counter() - began:.2f} s")
    bits = xgrammar.allocate_token_bitmask(1, ENTRIES)

    def step(state: Any, row: Any, token: int, seconds: list[list[float]]) -> None:
        times = [time.perf_counter()]
        state.fill_next_token_bitmask(bits)
        times.append(time.perf_counter())
        xgrammar.apply_token_bitmask_inplace(torch.from_numpy(row), bits[0])
        times.append(time.perf_counter())
        assert state.accept_token(token)
        times.append(time.perf_counter())
        for place in range(3):
            seconds[place].append(times[place + 1] - times[place])

    for name, constraint, texts in cases():
        began = time.perf_counter()
        match constraint.kind:
            case "json_schema" if name == "json_object":
                compiled = compiler.compile_builtin_json_grammar()
            case "json_schema":
                compiled = compiler.compile_json_schema(constraint.text)
            case "regex":
                compiled = compiler.compile_regex(constraint.text)
            case _:
                choices = " | ".join(json.dumps(choice) for choice in json.loads(constraint.text))
                compiled = compiler.compile_grammar(f"root ::= {choices}")
        print(f"{name}: compiled in {(time.perf_counter() - began) * 1e3:.1f} ms")
        tokens = [vocabulary.encode(text) for text in texts]
        follow(name, tokens, lambda: xgrammar.GrammarMatcher(compiled), step)  # noqa: B023


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xgrammar", action="store_true", help="measure xgrammar instead")
    vocabulary = Vocabulary()
    (with_xgrammar if parser.parse_args().xgrammar else with_llguidance)(vocabulary)


if __name__ == "__main__":
    main()
