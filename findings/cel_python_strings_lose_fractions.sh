#!/usr/bin/env bash
# string() of cel-python cuts fractions off durations and timestamps, and writes True for true.
#
# Package    cel-python 0.5.0.
# Behaviour  string(duration("1500ms")) is "1s" and string(duration("1ms")) is "0s". string() of a timestamp has no
#            fraction. string(true) is "True". The values themselves are right: only their text is not.
# Seen       1s, 0s, 2026-01-02T03:04:05Z, True. For the same expressions cel-go 0.26.0, the implementation that
#            Kubernetes uses, answers 1.5s, 0.001s, 2026-01-02T03:04:05.5Z and true.
# Source     in celtypes.py, __str__ of DurationType takes int() of the seconds, __str__ of TimestampType formats
#            with whole seconds, and __str__ of BoolType is that of Python's bool.
# Effect     A message expression or a comparison of texts that was tried out with cel-python has another result in an
#            API server, and a duration or a timestamp does not survive its own text.
# Instead    Compare durations and timestamps, not texts. For text use getMilliseconds() of a duration, and
#            `x ? "true" : "false"`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check cel-python==0.5.0
"$folder/venv/bin/python" - <<'PYTHON'
import celpy

environment = celpy.Environment()


def result(expression: str) -> object:
    value = environment.program(environment.compile(expression)).evaluate({})
    print(f"{expression:70} {value!r}")
    return value


for expression, as_in_cel in (
    ('string(duration("90s"))', "90s"),
    ('string(timestamp("2026-01-02T03:04:05Z"))', "2026-01-02T03:04:05Z"),
    ("string(17)", "17"),
):
    assert result(expression) == as_in_cel, f"{expression} is not {as_in_cel}"
assert result('duration("1500ms").getMilliseconds()') == 1500, "changed: the value itself has no fraction"
assert result('duration("1500ms") > duration("1s")'), "changed: the value itself has no fraction"
for expression, found in (
    ('string(duration("1500ms"))', "1s"),
    ('string(duration("1ms"))', "0s"),
    ('string(timestamp("2026-01-02T03:04:05.5Z"))', "2026-01-02T03:04:05Z"),
    ("string(true)", "True"),
):
    assert result(expression) == found, f"changed: {expression} is no longer {found}"
assert not result('duration(string(duration("1500ms"))) == duration("1500ms")'), "changed: a duration survives its text"
print("as found: the texts of durations and timestamps have no fraction, and true is True")
PYTHON
