"""What can go wrong between a model's source and a tensor in memory.

Every error says a machine reason (its class's name, as `status.conditions[].reason` shows it) and a sentence with the
remedy. `retriable` errors are worth another attempt; the others need a person.

    WeightsError
    ├── SourceError              the place named by spec.model.source
    │   ├── UnsupportedSource    the URL's form, scheme or security
    │   ├── RepositoryNotFound
    │   ├── GatedRepository
    │   ├── TokenRefused
    │   ├── RevisionNotFound
    │   ├── FileNotFoundAtSource
    │   ├── SourceUnreadable     the files are there, and may not be read
    │   ├── SourceUnreachable    (retriable)
    │   └── HashMismatch
    ├── FileError                what the files say
    │   ├── BrokenFile
    │   ├── UnsupportedFile
    │   └── UnsupportedArchitecture
    ├── CacheError               the store's volume
    │   ├── NoSpace
    │   └── CacheUnusable
    └── StoreError               the pipe's weights store, as its clients see it
        ├── StoreUnavailable     (retriable)
        ├── StoreFailed
        └── StoreRefused
"""

from __future__ import annotations


class WeightsError(Exception):
    """Base of all. `str(error)` is for people: what, which value, and the remedy."""

    retriable = False

    @property
    def reason(self) -> str:
        """CamelCase, stable: part of the contract with users."""
        return type(self).__name__

    def to_json(self) -> dict[str, str]:
        return {"reason": self.reason, "message": str(self)}


class SourceError(WeightsError):
    """The place named by spec.model.source."""


class UnsupportedSource(SourceError):
    """The source's form, scheme or security."""


class RepositoryNotFound(SourceError):
    """No such repository, or a private one that the token may not read."""


class GatedRepository(SourceError):
    """The repository asks for a token whose owner accepted its terms."""


class TokenRefused(SourceError):
    """The Hub knows no such token, or not any more."""


class RevisionNotFound(SourceError):
    """The repository has no such branch, tag or commit."""


class FileNotFoundAtSource(SourceError):
    """A file that the model needs is not there."""


class SourceUnreadable(SourceError):
    """The files are there, and the store may not read them."""


class SourceUnreachable(SourceError):
    """Network trouble or a server's passing failure."""

    retriable = True


class HashMismatch(SourceError):
    """The bytes are not those that the source promised."""


class FileError(WeightsError):
    """What the files say."""


class BrokenFile(FileError):
    """Truncated, contradictory or lying about its own size."""


class UnsupportedFile(FileError):
    """Well formed perhaps, but of a kind that is not read (pickles, unknown dtypes)."""


class UnsupportedArchitecture(FileError):
    """The model's family is not served."""


class CacheError(WeightsError):
    """The store's volume."""


class NoSpace(CacheError):
    """The volume is too small."""


class CacheUnusable(CacheError):
    """The volume cannot be written or read."""


class StoreError(WeightsError):
    """The pipe's weights store, as its clients see it."""


class StoreUnavailable(StoreError):
    """Away, or not ready with this file yet."""

    retriable = True


class StoreFailed(StoreError):
    """The store gave up; `reason` is the store's own."""

    def __init__(self, message: str, *, reason: str = "StoreFailed") -> None:
        super().__init__(message)
        self._reason = reason

    @property
    def reason(self) -> str:
        return self._reason


class StoreRefused(StoreError):
    """The store's answer is none that its protocol allows, or it is not this pipe's store."""
