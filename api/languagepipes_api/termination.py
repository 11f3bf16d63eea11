"""Why a member ended: `code: sentence`, as the node writes it, and whether starting the member again can help.

In a pod the kubelet keeps this as the container's termination message; `languagepipes up` gives each member a file.
A code is stable: people and programs look for it. A newer member may have codes that are not listed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The same plan, files and machine give the same end: a person must change something.
FINAL_CODES = frozenset(
    {
        # The member itself: its settings (a tokenizer that cannot be read is one), its image, its model.
        "InvalidSettings",
        "MissingModule",
        "ArchitectureError",
        "UnsupportedModel",
        "WrongWeights",
        # The model's source and files; also what a store that gave up told its members.
        "UnsupportedSource",
        "RepositoryNotFound",
        "GatedRepository",
        "TokenRefused",
        "RevisionNotFound",
        "FileNotFoundAtSource",
        "SourceUnreadable",
        "HashMismatch",
        "BrokenFile",
        "UnsupportedFile",
        "UnsupportedArchitecture",
        "StoreFailed",
    }
)
# What another start may not meet again.
PASSING_CODES = frozenset(
    {
        # Other processes use memory, disk and ports too, and may let go of them.
        "OutOfMemory",
        "NoSpace",
        "CacheUnusable",
        "CannotListen",
        "PermissionDenied",
        "SystemError",
        # Certificates are replaced while members run.
        "CertificatesUnusable",
        # The other members: they start, end and are replaced too.
        "SourceUnreachable",
        "StoreUnavailable",
        "StoreRefused",
        "RingFailed",
        "Superseded",
        # Faults of ours, met by one request or by chance.
        "BatchError",
        "EngineFailed",
        "ApiFailed",
        "InternalError",
    }
)
_MESSAGE = re.compile(r"(?P<code>[A-Z][A-Za-z0-9]{2,63}): (?P<sentence>\S.*)")


@dataclass(frozen=True)
class Termination:
    """Why a member ended. code: CamelCase. sentence: for people, with the remedy, on one line."""

    code: str
    sentence: str

    @classmethod
    def parse(cls, message: str) -> Termination | None:
        """From a termination message; None for the message of something else, or none."""
        found = _MESSAGE.fullmatch(" ".join(message.split()))
        return None if found is None else cls(found["code"], found["sentence"])

    @property
    def final(self) -> bool:
        """Whether no restart helps. A code that is not known may pass."""
        return self.code in FINAL_CODES

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"
