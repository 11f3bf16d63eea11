"""Reports why this process ends, as `code: sentence`: the last line on stderr, and the pod's termination message.

Codes are CamelCase and stable; the operator quotes them in conditions. Neither contains text of a request.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback

from languagepipes_api.member_settings import PREFIX, MemberSettings

from languagepipes_node.member import SettingsError
from languagepipes_node.model.errors import ModelError
from languagepipes_node.net.errors import TlsError
from languagepipes_node.weights.errors import WeightsError
from languagepipes_node.wire.errors import SupersededError, WireError

log = logging.getLogger(__name__)

# Also where the settings cannot be read.
_PATH_VARIABLE = f"{PREFIX}TERMINATION_LOG"
_DEFAULT_PATH = MemberSettings.model_fields["termination_log"].default
# Kubernetes keeps 4096 bytes of one container, and 12 KiB of a pod's.
_MAX_BYTES = 2048


def report(who: str, error: Exception | tuple[str, str]) -> None:
    """Report why `who` ends. error: one of the errors that end a member, or (code, sentence)."""
    if not isinstance(error, tuple):
        if code_of(error) in ("InternalError", "MissingModule"):
            log.error("%s in\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
        error = code_of(error), sentence_of(error)
    code, sentence = error
    print(f"{who}: {code}: {sentence}", file=sys.stderr, flush=True)
    text = " ".join(f"{code}: {sentence}".split()).encode()[:_MAX_BYTES]
    try:
        # Only where the kubelet made the file: outside a pod nothing is left in /dev.
        descriptor = os.open(os.environ.get(_PATH_VARIABLE) or _DEFAULT_PATH, os.O_WRONLY | os.O_TRUNC)
    except OSError:
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.decode(errors="ignore").encode())


def code_of(error: Exception) -> str:
    """The stable code for an error."""
    if isinstance(error, WeightsError):
        return error.reason
    if isinstance(error, SettingsError):
        return "InvalidSettings"
    if isinstance(error, SupersededError):
        return "Superseded"
    if isinstance(error, TlsError):
        return "CertificatesUnusable"
    if isinstance(error, WireError):
        return "RingFailed"
    if isinstance(error, ModelError):
        return type(error).__name__
    if isinstance(error, MemoryError):
        return "OutOfMemory"
    if isinstance(error, ImportError):
        return "MissingModule"
    if isinstance(error, OSError):
        return _CODES_OF_ERRNO.get(error.errno or 0, "SystemError")
    return "InternalError"


def sentence_of(error: Exception) -> str:
    """For people. Of an unknown error only the type is named, since its message may quote text of a request."""
    known = (WeightsError, SettingsError, WireError, TlsError, ModelError, OSError)
    if isinstance(error, MemoryError):
        return "the process got no more memory: give the member more, or a smaller share of the layers"
    if isinstance(error, ImportError):
        # The message of an import error names modules and nothing else.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        problem = f"lacks the Python module {missing}" if missing else f"cannot import a Python module ({error})"
        return f"the node image {problem}: use an image built from this version's Dockerfile.node"
    return str(error) if isinstance(error, known) else f"{type(error).__name__}; the log has the traceback"


_CODES_OF_ERRNO = {
    errno.EADDRINUSE: "CannotListen",
    errno.EADDRNOTAVAIL: "CannotListen",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.EROFS: "PermissionDenied",
    errno.ENOSPC: "NoSpace",
    errno.ENOMEM: "OutOfMemory",
}
