"""hf://: a model repository on the Hub, or on what HF_ENDPOINT names.

huggingface_hub resolves the revision to a commit, lists sizes and hashes, and says where files are; the token goes to
the endpoint's host over TLS and nowhere else.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
from huggingface_hub import HfApi, get_session, hf_hub_url, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers

from languagepipes_node.store.sources import http
from languagepipes_node.store.sources.base import Snapshot, SourceFile
from languagepipes_node.weights.errors import (
    RepositoryNotFound,
    RevisionNotFound,
    SourceUnreachable,
    TokenRefused,
    UnsupportedSource,
)

DEFAULT_ENDPOINT = "https://huggingface.co"
_URL = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^?#]+\.gguf))?/?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# OpenSSL's verification errors that another authority would mend (X509_verify_cert_error_string(3)).
_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})


class HubSource:
    """`hf://owner/name`, or `hf://owner/name/FILE.gguf` for one GGUF file of several. Raises UnsupportedSource."""

    def __init__(
        self,
        url: str,
        revision: str | None = None,
        *,
        token_file: Path | None = None,
        endpoint: str | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise UnsupportedSource(f"source {url!r} is not of the form hf://owner/name or hf://owner/name/FILE.gguf")
        self.url = url
        self.revision = revision or "main"
        self.repository: str = match[1]
        self.gguf_file: str | None = match[2]
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._token = _read_token(token_file)
        if self._token is not None:
            http.require_tls(self._endpoint, what="a token is given, but the endpoint")
        self._client = http.new_client(trusted)
        if trusted is not None:
            _let_the_library_trust(trusted)

    def resolve(self) -> Snapshot:
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            info = api.model_info(self.repository, revision=self.revision, files_metadata=True, timeout=30.0)
        except HFValidationError as error:
            raise UnsupportedSource(f"{self.url}: {error}") from error
        except HfHubHTTPError as error:
            response = error.response
            what = f"{self.url} at {self.revision!r}"
            # To a token that it knows, the Hub says 403 or 404.
            if response.status_code == 401 and self._token is not None:
                raise TokenRefused(
                    f"{what}: the Hub refuses the token (401): it is wrong, has expired or was revoked; put one that "
                    "works into the Secret of tokenSecretRef"
                ) from error
            raise http.translate(response.status_code, response.headers.get("X-Error-Code", ""), what) from error
        except (httpx.TransportError, OSError) as error:
            what = f"{self.url} at {self._endpoint}"
            if (refused := _of_unknown_authority(error)) is not None:
                raise SourceUnreachable(
                    f"{what}: its certificate is of an authority that is not trusted ({refused.verify_message}): put "
                    "that authority into the chart's hub.caBundle (with languagepipes up, into the file that "
                    "SSL_CERT_FILE names); trying again"
                ) from error
            raise http.unreachable(what, error) from error
        except ValueError as error:
            raise SourceUnreachable(f"{self.url}: {self._endpoint} answers no JSON; trying again") from error
        if not info.sha or _COMMIT.fullmatch(info.sha) is None:
            raise RevisionNotFound(f"{self.url}: the Hub names no commit for {self.revision!r}")
        files = []
        for sibling in info.siblings or ():
            if sibling.size is None or ("/" in sibling.rfilename and sibling.rfilename != self.gguf_file):
                continue
            files.append(
                SourceFile(
                    sibling.rfilename,
                    int(sibling.size),
                    sha256=sibling.lfs.sha256 if sibling.lfs else None,
                    git_sha1=None if sibling.lfs else sibling.blob_id,
                )
            )
        if not files:
            raise RepositoryNotFound(f"{self.url} at {info.sha} holds no files")
        return Snapshot(info.sha, tuple(files))

    def read_range(self, snapshot: Snapshot, file: SourceFile, begin: int, end: int) -> bytes:
        url, headers = self._where(snapshot, file)
        return http.read_range(self._client, url, headers, begin, end, what=self._what(snapshot, file))

    def stream(self, snapshot: Snapshot, file: SourceFile, begin: int) -> tuple[int, Iterator[bytes]]:
        url, headers = self._where(snapshot, file)
        what = self._what(snapshot, file)
        return http.stream_from(self._client, url, headers, begin, what=what, size=file.size)

    def _where(self, snapshot: Snapshot, file: SourceFile) -> tuple[str, dict[str, str]]:
        url = hf_hub_url(self.repository, file.name, revision=snapshot.revision, endpoint=self._endpoint)
        return url, build_hf_headers(token=self._token or False, library_name="languagepipes")

    def _what(self, snapshot: Snapshot, file: SourceFile) -> str:
        return f"{file.name} of {self.url} at {snapshot.revision[:12]}"


def _let_the_library_trust(trusted: ssl.SSLContext) -> None:
    """huggingface_hub asks by one client of the whole process: from now on by one that trusts these authorities."""
    hooks = get_session().event_hooks

    def new_client() -> httpx.Client:
        client = http.new_client(trusted)
        client.event_hooks = hooks
        return client

    set_client_factory(new_client)


def _of_unknown_authority(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """What OpenSSL said, somewhere in the error's causes, if it was that."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error if error.verify_code in _UNKNOWN_AUTHORITY else None
        error = error.__cause__ or error.__context__
    return None


def _read_token(token_file: Path | None) -> str | None:
    if token_file is None:
        return None
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise UnsupportedSource(f"the token file {token_file} cannot be read: {error.strerror}") from error
    if not token or any(character.isspace() for character in token) or not token.isascii():
        raise UnsupportedSource(f"the token file {token_file} does not hold one token; check tokenSecretRef")
    return token
