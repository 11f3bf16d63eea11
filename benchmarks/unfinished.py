"""A run that was cut short is taken up again: what it had measured whole is kept in a file as it goes.

Only a run of the same build on the same machine, since its last start, may be taken up: figures of one table are of one
machine and one build.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import machine


class OtherRun(RuntimeError):
    """What is kept belongs to another run; the message names the field, both values and the remedy."""


def identity(described: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What has to be equal for a run to be taken up: build, machine since its start, and what it was asked."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"revision": described["revision"], "boot": boot, "cores": machine.cores(), **options}


class Unfinished:
    """Parts by name, each JSON. With resume, those of the run that was cut short are there already.

    Raises OtherRun if that was a run of another identity.
    """

    def __init__(self, file: Path, identity: dict[str, Any], *, resume: bool) -> None:
        self._file, self._identity = file, json.loads(json.dumps(identity))
        self._parts: dict[str, Any] = {}
        if resume and file.exists():
            kept = json.loads(file.read_text())
            for name, value in self._identity.items():
                if (before := kept["identity"].get(name)) != value:
                    raise OtherRun(
                        f"--resume: {file} is of a run whose {name} is {before!r}, and now it is {value!r}; run without"
                        " --resume to begin anew"
                    )
            self._parts = kept["parts"]

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def keep(self, name: str, part: Any) -> None:
        """From now on a run that is taken up has this part."""
        self._parts[name] = part
        self._file.parent.mkdir(parents=True, exist_ok=True)
        written = self._file.with_suffix(".part")
        written.write_text(json.dumps({"identity": self._identity, "parts": self._parts}))
        os.replace(written, self._file)

    def forget(self) -> None:
        """The run is whole."""
        self._file.unlink(missing_ok=True)
