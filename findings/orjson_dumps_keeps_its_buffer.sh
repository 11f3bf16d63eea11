#!/usr/bin/env bash
# A short result of orjson.dumps occupies some 4 KB for as long as it is kept.
#
# Package    orjson 3.13.0 (seen with CPython 3.11 on Linux, x86-64).
# Behaviour  dumps returns bytes, whose memory is that of the buffer that it wrote into. sys.getsizeof reports the length
#            of the text alone; tracemalloc and the process's resident memory show the buffer. json.dumps(...).encode(),
#            and a copy of the same result, occupy what getsizeof says.
# Seen       50,000 results of up to 16 bytes: 4.1 KB of resident memory each; copies of them: less than 0.1 KB each.
# Source     the writer (byteswriter.rs, read in an earlier release) makes a bytes object as large as its buffer, stores
#            the final length in it, and then has CPython resize it to that length. CPython compares the length asked for
#            with the stored one, finds nothing to do, and gives no memory back.
# Effect     A program that keeps many small results (a cache, log lines that wait, parts of an answer) needs fifty times
#            the memory that it counts: a million such results are 4 GB.
# Instead    Keep a copy, as bytes(memoryview(result)), since bytes(result) and result[:] are the same object; or join
#            the results into one, and keep that.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check orjson==3.13.0
cat >"$folder/measure.py" <<'PYTHON'
"""Prints the resident memory, and the size by sys.getsizeof, of one of 50,000 kept results. argv: how they are made."""

import json
import os
import sys

import orjson

COUNT = 50_000
made = {
    "orjson.dumps": lambda value: orjson.dumps(value),
    "copied": lambda value: bytes(memoryview(orjson.dumps(value))),
    "json.dumps": lambda value: json.dumps(value, separators=(",", ":")).encode(),
}[sys.argv[1]]


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


made({"offset": 0})
before = resident()
kept = [made({"offset": number}) for number in range(COUNT)]
after = resident()
assert all(orjson.loads(text) == {"offset": number} for number, text in enumerate(kept))
print((after - before) / COUNT, max(map(sys.getsizeof, kept)))
PYTHON
"$folder/venv/bin/python" - "$folder/measure.py" <<'PYTHON'
import subprocess
import sys


def measured(how: str) -> tuple[float, int]:
    printed = subprocess.run([sys.executable, sys.argv[1], how], check=True, capture_output=True, text=True).stdout
    resident, stated = printed.split()
    print(f"{how:14} {float(resident):8.0f} bytes of resident memory for each result, sys.getsizeof: {stated}")
    return float(resident), int(stated)


kept, kept_stated = measured("orjson.dumps")
copied, copied_stated = measured("copied")
plain, plain_stated = measured("json.dumps")
assert kept_stated == copied_stated == plain_stated < 64, "changed: sys.getsizeof tells them apart"
assert copied < 200, "changed: a copy is large too"
assert plain < 200, "changed: json's results are large too"
assert kept > 2000, "changed: a kept result of orjson is small"
print("as found: a kept result of orjson.dumps occupies the buffer that it was written into")
PYTHON
