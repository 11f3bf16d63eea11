"""A member's log is bounded while the member writes to it, and its last lines are found wherever they are."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from languagepipes_operator.cli.up.member_log import MemberLog

pytestmark = pytest.mark.timeout(60)

# Writes numbered lines of 100 bytes until its stdin ends, then a last one: through file descriptor 2, as C code does.
WRITES = """
import os, select, sys
number = 0
while not select.select([0], [], [], 0)[0]:
    os.write(2, b'%099d\\n' % number)
    number += 1
os.write(2, b'%d lines and the end\\n' % number)
"""


def write(log: MemberLog, data: bytes) -> None:
    with log.open() as file:
        file.write(data)


def test_a_log_is_bounded_while_the_member_writes_on_and_its_last_line_is_kept(tmp_path: Path) -> None:
    log = MemberLog(tmp_path / "stage.log", max_bytes=100_000, files=3)
    parts = [tmp_path / name for name in ("stage.log", "stage.log.1", "stage.log.2")]
    with log.open() as file:
        member = subprocess.Popen([sys.executable, "-I", "-S", "-c", WRITES], stdin=subprocess.PIPE, stderr=file)
    assert member.stdin is not None

    rotations, inode = 0, log.path.stat().st_ino
    while rotations < 20:
        before = parts[1].stat().st_mtime_ns if parts[1].exists() else 0
        log.bound()
        rotations += parts[1].exists() and parts[1].stat().st_mtime_ns != before
    member.stdin.close()
    member.wait()

    assert sorted(tmp_path.iterdir()) == sorted(parts)
    assert log.path.stat().st_ino == inode  # the member writes into it still
    lines = b"".join(part.read_bytes() for part in reversed(parts)).splitlines()
    last = log.last_lines()[-1]
    assert last.endswith("lines and the end")
    numbers = [int(line) for line in lines[:-1]]
    assert numbers == sorted(set(numbers))  # none twice, none torn, the oldest first
    assert numbers[-1] == int(last.split()[0]) - 1
    # Lines between the last read and the cut may be lost (as many as the member writes meanwhile), none within a part:
    # three parts have two cuts. A hole of zeros is no number.
    assert sum(after != before + 1 for before, after in pairwise(numbers)) <= 2


def test_a_small_log_is_left_alone(tmp_path: Path) -> None:
    log = MemberLog(tmp_path / "stage.log", max_bytes=100)
    write(log, b"x" * 99)
    log.bound()
    assert [path.name for path in tmp_path.iterdir()] == ["stage.log"]


def test_what_an_earlier_run_left_counts(tmp_path: Path) -> None:
    (tmp_path / "stage.log").write_bytes(b"x" * 100)
    log = MemberLog(tmp_path / "stage.log", max_bytes=100)
    write(log, b"new\n")
    assert log.path.read_bytes() == b"new\n"
    assert (tmp_path / "stage.log.1").read_bytes() == b"x" * 100
    assert log.last_lines() == ("new",)


def test_the_last_lines_are_those_of_the_last_life_without_control_characters(tmp_path: Path) -> None:
    log = MemberLog(tmp_path / "stage.log")
    write(log, b"an earlier life\n")
    write(log, b"\n".join(b"line %d" % number for number in range(20)) + b"\n\x1b[31mred\xff\n\n")
    assert log.last_lines() == (*(f"line {number}" for number in range(13, 20)), " [31mred\ufffd")
    write(log, b"")
    assert log.last_lines() == ()


def test_the_last_lines_are_found_in_the_older_part_too_but_not_those_of_an_earlier_life(tmp_path: Path) -> None:
    log = MemberLog(tmp_path / "stage.log", max_bytes=40)
    write(log, b"an earlier life\n")
    with log.open() as file:
        file.write(b"the reason, in twenty-eight bytes\n")
        file.flush()
        log.bound()
        file.write(b"and one more\n")
    assert log.path.read_bytes() == b"and one more\n"
    assert log.last_lines() == ("the reason, in twenty-eight bytes", "and one more")


def test_a_volume_without_space_stops_nobody_and_loses_nothing(tmp_path: Path) -> None:
    log = MemberLog(tmp_path / "stage.log", max_bytes=10, files=2)
    log.bound()  # not there yet
    write(log, b"x" * 20)
    (tmp_path / "stage.log.1").symlink_to("/dev/full")
    log.bound()
    assert log.path.read_bytes() == b"x" * 20
    log.bound()
    assert log.path.read_bytes() == b""
    assert (tmp_path / "stage.log.1").read_bytes() == b"x" * 20
