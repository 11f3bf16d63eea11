"""A plain client of the API server for the harness itself: JSON by path, with a client certificate."""

from __future__ import annotations

import json
import ssl
from typing import Any

import httpx

from cluster.certificates import Authority, Leaf

Object = dict[str, Any]


class Api:
    """Requests by path; an error raises httpx.HTTPStatusError, whose text has the server's message."""

    def __init__(self, url: str, authority: Authority, leaf: Leaf) -> None:
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.load_cert_chain(leaf.certificate, leaf.key)
        self._client = httpx.Client(base_url=url, verify=context, timeout=10, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def ready(self) -> bool:
        """Whether the API server says that it is ready; one that does not answer is not."""
        try:
            return self._client.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str) -> Object:
        return self._answer(self._client.get(path, params=parameters))

    def exists(self, path: str) -> bool:
        """False also while the API server makes the storage of a resource that was just defined, and says 429."""
        answer = self._client.get(path)
        if answer.status_code in {httpx.codes.NOT_FOUND, httpx.codes.TOO_MANY_REQUESTS}:
            return False
        self._answer(answer)
        return True

    def create(self, path: str, body: Object) -> Object:
        return self._answer(self._client.post(path, json=body))

    def merge(self, path: str, body: Object) -> Object:
        """A JSON merge patch."""
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._answer(self._client.patch(path, content=json.dumps(body), headers=headers))

    def apply(self, path: str, body: Object) -> Object:
        """Server-side apply; the path names the object."""
        headers = {"Content-Type": "application/apply-patch+yaml"}
        parameters = {"fieldManager": "test-cluster", "force": "true"}
        return self._answer(self._client.patch(path, content=json.dumps(body), headers=headers, params=parameters))

    def delete(self, path: str, **parameters: str) -> None:
        """Delete, and be content if the object is gone already."""
        answer = self._client.delete(path, params=parameters)
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._answer(answer)

    @staticmethod
    def _answer(answer: httpx.Response) -> Object:
        if answer.is_error:
            message = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}"
            raise httpx.HTTPStatusError(message, request=answer.request, response=answer)
        body: Object = answer.json()
        return body
