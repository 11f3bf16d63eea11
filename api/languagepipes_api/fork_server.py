"""What `languagepipes up` and its fork server (`languagepipes_node.fork_server`) say to each other: JSON, one a line,
over a socket pair. Both are of one installation and trust each other. Light to import: standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ForkRequest:
    """Fork the member `name`. environment: all of its variables. log: stdout and stderr are appended to it.

    parent: the process that the member is left to and dies with.
    """

    name: str
    environment: Mapping[str, str]
    directory: Path
    log: Path
    parent: int

    def to_line(self) -> bytes:
        # Bytes of a variable that are no UTF-8 are lone surrogates here: JSON's escapes carry them.
        return json.dumps(asdict(self), default=str).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ForkRequest:
        """Raises ValueError, KeyError or TypeError for what is none."""
        data = json.loads(line)
        return cls(
            name=str(data["name"]),
            environment={str(key): str(value) for key, value in data["environment"].items()},
            directory=Path(data["directory"]),
            log=Path(data["log"]),
            parent=int(data["parent"]),
        )


@dataclass(frozen=True)
class ForkAnswer:
    """pid: the new member's, which leads a session; None in the first line of all: the imports are done.

    error: why there is no such process, or no server; empty otherwise.
    """

    pid: int | None = None
    error: str = ""

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ForkAnswer:
        """Raises ValueError, KeyError or TypeError for what is none."""
        data = json.loads(line)
        return cls(None if data["pid"] is None else int(data["pid"]), str(data["error"]))
