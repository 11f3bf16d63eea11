"""Where a model comes from: the four kinds of `spec.model.source`, parsed.

The patterns are those of the CRD's CEL rules, so whatever the API server admits parses here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Scheme = Literal["hf", "pvc", "https", "file"]

# Quotes and backslashes are left out, so that the same text stands in a CEL string.
HUB_PATTERN = (
    "^hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}((/[A-Za-z0-9_][A-Za-z0-9._-]*)*[.]gguf)?$"
)
VOLUME_PATTERN = "^pvc://[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?(/[.]?[A-Za-z0-9_][A-Za-z0-9._-]*)*/?$"
_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
HTTPS_PATTERN = (
    f"^https://[A-Za-z0-9]([A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?(:({_PORT}))?(/[A-Za-z0-9._~%!$&()*+,;=:@-]*)*$"
)
FILE_PATTERN = "^file://[^/?#].*$|^file:///.*$"

HUB_FORM = "an hf:// source is hf://OWNER/NAME, or hf://OWNER/NAME/FILE.gguf for one GGUF file"
VOLUME_FORM = (
    "a pvc:// source is pvc://CLAIM/PATH, with names of letters, digits, dots, _ and - in PATH, and without . and .."
)
HTTPS_FORM = (
    "an https:// source is https://HOST/PATH or https://HOST:PORT/PATH with a port from 1 to 65535, without user, "
    "password, query or fragment"
)
FILE_FORM = "a file:// source is file:///ABSOLUTE/PATH, or file://RELATIVE/PATH seen from the YAML file"


@dataclass(frozen=True)
class Source:
    """One parsed source.

    location: the Hub repository ("Qwen/Qwen3-8B"), the volume claim, the URL's host, or "" for file://.
    path: what follows it, without a leading slash ("" for none); for file:// the path as written.
    """

    scheme: Scheme
    location: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://" + "/".join(part for part in (self.location, self.path) if part)


def parse_source(text: str) -> Source:
    """Raises ValueError, with the value and the right form, for anything that is no source."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(f"{text!r} has no scheme; use hf://, pvc://, https:// or file://")
    match scheme:
        case "hf":
            _check(HUB_PATTERN, text, HUB_FORM)
            owner, name, *inside = rest.split("/")
            return Source("hf", f"{owner}/{name}", "/".join(inside))
        case "pvc":
            _check(VOLUME_PATTERN, text, VOLUME_FORM)
            claim, _, path = rest.partition("/")
            return Source("pvc", claim, path.rstrip("/"))
        case "https":
            _check(HTTPS_PATTERN, text, HTTPS_FORM)
            host, _, path = rest.partition("/")
            return Source("https", host, path)
        case "file":
            _check(FILE_PATTERN, text, FILE_FORM)
            return Source("file", "", rest)
        case _:
            raise ValueError(f"{text!r} has an unknown scheme; use hf://, pvc://, https:// or file://")


def absolute_source(text: str, directory: Path) -> str:
    """`text` with a relative file:// path seen from `directory` (absolute); any other source unchanged."""
    source = parse_source(text)
    if source.scheme != "file":
        return text
    return f"file://{(directory / source.path).resolve()}"


def _check(pattern: str, text: str, form: str) -> None:
    # Python's "$" also matches before a last newline; RE2's does not.
    if not re.search(pattern, text) or "\n" in text:
        raise ValueError(f"{text!r}: {form}")
