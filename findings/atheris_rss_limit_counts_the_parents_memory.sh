#!/usr/bin/env bash
# A fuzz target that uses 70 MB ends with "out-of-memory (limit: 300Mb)" if the Python process that starts it is large.
#
# Package    atheris 3.0.0 (libFuzzer), started by CPython 3.11's subprocess on Linux.
# Behaviour  -rss_limit_mb is held against the peak that getrusage reports as ru_maxrss. Linux keeps that number over
#            exec, and subprocess starts children by vfork, so the child begins with the peak of the process that
#            started it. A target that allocates nothing is told to be over its limit within a second or two.
# Seen       the same target and options: exit 0 under a small parent, "out-of-memory" under one that holds 600 MB, and
#            exit 0 again under the large one with a shell in between that forks.
# Source     getrusage(2) and the kernel's exec, which records the old address space's high-water mark; libFuzzer's
#            thread for the limit asks for the peak, not for what is used now.
# Effect     A suite that runs its fuzz targets from pytest fails after tests that used much memory, and blames the
#            input that happened to run; alone the same target passes.
# Instead    Start the target from a shell that forks it: sh -c '"$@"; exit $?' sh python target.py ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check atheris==3.0.0
cat >"$folder/target.py" <<'PYTHON'
import sys
import time

import atheris


def nothing(data: bytes) -> None:
    time.sleep(0.01)


atheris.Setup(sys.argv, nothing)
atheris.Fuzz()
PYTHON
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import re
import subprocess
import sys

folder = sys.argv[1]
TARGET = [sys.executable, f"{folder}/target.py", "-runs=400", "-seed=1", "-rss_limit_mb=300", f"-artifact_prefix={folder}/"]
FORKED = ["sh", "-c", '"$@"; exit $?', "sh", *TARGET]


def run(command: list[str], parent: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdict = re.search(r"out-of-memory \(used: \d+Mb; limit: \d+Mb\)", done.stderr)
    seen = "exit 0" if done.returncode == 0 else verdict[0] if verdict else done.stderr[-500:]
    print(f"{parent:32} {seen}")
    return seen


assert run(TARGET, "a small parent:") == "exit 0"
ballast = bytearray(600 << 20)
ballast[:: 4096] = b"x" * len(ballast[:: 4096])
assert "out-of-memory" in run(TARGET, "a parent that holds 600 MB:"), "changed: the parent's memory is not counted"
assert run(FORKED, "the same, with a shell between:") == "exit 0"
print("as found: -rss_limit_mb counts the peak of the process that started the fuzzer")
PYTHON
