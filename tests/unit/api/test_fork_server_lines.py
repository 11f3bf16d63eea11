"""What `up` and its fork server say to each other fits on a line and comes back as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from languagepipes_api.fork_server import ForkAnswer, ForkRequest


def test_a_request_comes_back_whatever_the_environment_holds() -> None:
    environment = {"PATH": "/bin", "MOTD": "two\nlines", "LATIN": os.fsdecode(b"caf\xe9"), "NONE": "", "Ü": "日本"}
    request = ForkRequest("stage-1", environment, Path("/tmp/a b"), Path("/tmp/logs/stage-1.log"), 4711)
    line = request.to_line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert ForkRequest.from_line(line) == request


@pytest.mark.parametrize("answer", [ForkAnswer(), ForkAnswer(12), ForkAnswer(error="no memory\nleft")])
def test_an_answer_comes_back(answer: ForkAnswer) -> None:
    assert answer.to_line().count(b"\n") == 1
    assert ForkAnswer.from_line(answer.to_line()) == answer
