"""The errors that every TLS connection of a member can meet, and what to write about one for people.

It does not know which protocol runs over the connection.
"""

from __future__ import annotations

import ssl


class TlsError(Exception):
    """A certificate or a key cannot be used, or a peer's certificate is not acceptable."""


def describe(error: Exception) -> str:
    """An OSError, SSLError or TlsError in a few words for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "closed by the peer"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        return f"TLS: {reason.lower().replace('_', ' ')}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)
