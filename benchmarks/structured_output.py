"""What a JSON schema costs the answers that are held to it.

    python -m benchmarks.structured_output [--repeats 5] [--streams 16] [--tokens 96] [--stages 2]

Under `languagepipes up`: tokens a second of streams with a schema ÷ without one, in turns, and the time to the first
token of one stream with a schema that was compiled before, beside one without. Answers have the same number of
tokens both ways: the schema's list has no end within them, and without a schema `ignore_eos` is set.
"""

from __future__ import annotations

import argparse
import itertools
import sys

from benchmarks import machine, models
from benchmarks.figures import Spread, markdown_table
from benchmarks.prompts import Messages
from benchmarks.ring import Ring
from benchmarks.streams import Round, run_streams

_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["old", "young", "tall"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
_SCHEMA = {"type": "array", "items": _RECORD, "minItems": 1000}
_FREE = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_HELD = {
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": _SCHEMA, "strict": True}},
}
_numbers = itertools.count()


def prompts(count: int) -> list[Messages]:
    """New ones each time, so that nothing of them is known."""
    return [
        [{"role": "user", "content": f"{next(_numbers)}: describe a thousand people as JSON."}] for _ in range(count)
    ]


def asked(ring: Ring, count: int, *, tokens: int, held: bool) -> Round:
    """Streams that start together. Raises RuntimeError if an answer is shorter than `tokens`."""
    extra = _HELD if held else _FREE
    found = run_streams(ring.url, prompts(count), model=ring.model_id, new_tokens=tokens, extra=extra)
    if found.tokens != count * tokens:
        raise RuntimeError(f"{count} answers of {tokens} tokens were asked for, and {found.tokens} tokens came")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--stages", type=int, default=2)
    options = parser.parse_args()
    model = models.ensure("smollm2")
    speed: dict[bool, list[float]] = {False: [], True: []}
    first: dict[bool, list[float]] = {False: [], True: []}
    with Ring(model, stages=options.stages) as ring:
        for held in (False, True):
            asked(ring, options.streams, tokens=8, held=held)
        for _ in range(options.repeats):
            for held in (False, True):
                speed[held].append(asked(ring, options.streams, tokens=options.tokens, held=held).tokens_per_second)
        for _ in range(6 * options.repeats):
            for held in (False, True):
                first[held].append(1000 * asked(ring, 1, tokens=2, held=held).first_token_seconds[0])
    ratios = [with_it / without for without, with_it in zip(speed[False], speed[True], strict=True)]
    later = [with_it - without for without, with_it in zip(first[False], first[True], strict=True)]
    rows = [
        [f"{options.streams} streams, tokens/s, without", f"{Spread.of(speed[False])}"],
        [f"{options.streams} streams, tokens/s, with", f"{Spread.of(speed[True])}"],
        ["with ÷ without", f"{Spread.of(ratios)}"],
        ["first token, without", f"{Spread.of(first[False])} ms"],
        ["first token, with", f"{Spread.of(first[True])} ms"],
        ["later by", f"{Spread.of(later)} ms"],
    ]
    print(machine.markdown(machine.describe("benchmarks.structured_output")))
    print(f"\n{model.title}, {options.stages + 1} members, answers of {options.tokens} tokens\n")
    print(
        markdown_table(
            [f"median of {options.repeats}, first token {6 * options.repeats} (least to greatest)", ""], rows
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
