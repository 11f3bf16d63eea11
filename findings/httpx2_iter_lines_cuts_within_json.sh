#!/usr/bin/env bash
# httpx2's iter_lines ends a line at U+2028, U+2029 and U+0085 too, which JSON may hold: an event comes in two halves.
#
# Package    httpx2 2.16.2.
# Behaviour  response.iter_lines() (and aiter_lines) is how streams of JSON lines and of server-sent events are read. In
#            both formats a line ends at a line feed or carriage return, and JSON escapes both within strings. It need
#            not escape LINE SEPARATOR, PARAGRAPH SEPARATOR and NEXT LINE, which serialisers other than Python's json with
#            its default write as they are. iter_lines takes these for ends of lines.
# Seen       one line {"text":"one<U+2028>two"} is read as {"text":"one and two"}; written as \u2028 it is read as one.
# Source     LineDecoder in httpx2/_decoders.py splits with str.splitlines, and says so; it is httpx's. The names of
#            the method and of the formats suggest a file's lines, for which open() knows \n, \r and \r\n alone.
# Effect     A client of a streaming API works until a text with such a character comes (texts copied from PDF and word
#            processors hold U+2028): then json.loads raises in the middle of the stream.
# Instead    Split bytes: keep what iter_bytes gives, and cut it at b"\n". A server helps its clients by escaping the three
#            characters.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check httpx2==2.16.2
"$folder/venv/bin/python" - <<'PYTHON'
import io
import json

import httpx2


def read(stream: bytes) -> list[str]:
    """The lines that a client of the stream gets."""
    with httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=stream))) as client:
        lines = list(client.get("http://127.0.0.1/").iter_lines())
    print([ascii(line) for line in lines])
    return lines


def written(text: str, **options: object) -> bytes:
    return json.dumps({"text": text}, **options).encode() + b"\n"


for separator in "\u2028", "\u2029", "\u0085":
    escaped, raw = written(f"one{separator}two"), written(f"one{separator}two", ensure_ascii=False)
    assert json.loads(escaped) == json.loads(raw), "the two are not the same JSON"
    assert len(io.TextIOWrapper(io.BytesIO(raw), "utf-8").readlines()) == 1, "a text file has another idea of this line"
    assert len(read(escaped)) == 1, "an escaped separator ends a line"
    assert read(raw) == ['{"text": "one', 'two"}'], "changed: the separator does not end a line"
assert read(written("one\u00e9\u2027two", ensure_ascii=False)) == ['{"text": "one\u00e9\u2027two"}'], "others end lines, too"
print("as found: three characters that JSON may hold end a line")
PYTHON
