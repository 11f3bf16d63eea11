"""What members measured about their machines, remembered for others and for their own next start.

The first that is told stands: replicas on machines of one kind compute alike. Kept in memory, and in a file of the
cache once there is one.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

from languagepipes_api.store_answers import ArithmeticChoices
from pydantic import ValidationError

from languagepipes_node.store.cache import write_atomically

log = logging.getLogger(__name__)
# Kinds of machines times kinds of stages; the oldest go first.
_MOST = 512


class RememberedArithmetic:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, ArithmeticChoices] = {}
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """From now on there, with what it holds. One that cannot be read is begun anew."""
        with self._lock:
            self._file = file
            self._known = self._read() | self._known

    def get(self, key: str) -> ArithmeticChoices | None:
        with self._lock:
            return self._known.get(key)

    def put(self, key: str, choices: ArithmeticChoices) -> ArithmeticChoices:
        """Returns what is remembered: another's choices if those came first."""
        with self._lock:
            known = self._read() | self._known  # other stores may share the file
            found = known.setdefault(key, choices)
            self._known = dict(list(known.items())[-_MOST:])
            if found is choices and self._file is not None:
                self._write(self._file)
            return found

    def _read(self) -> dict[str, ArithmeticChoices]:
        if self._file is None:
            return {}
        try:
            held = json.loads(self._file.read_text())
            return {str(key): ArithmeticChoices.model_validate(value) for key, value in held.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:  # a ValidationError is a ValueError
            log.warning("%s: what members measured is begun anew (%s)", self._file, _first_line(error))
            return {}

    def _write(self, file: Path) -> None:
        held = {key: choices.model_dump(mode="json") for key, choices in self._known.items()}
        try:
            write_atomically(file, json.dumps(held, indent=1).encode())
        except OSError as error:
            log.warning("%s: what members measured is not kept (%s)", file, error)


def _first_line(error: Exception) -> str:
    return str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error).partition("\n")[0]
