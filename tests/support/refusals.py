"""What a request that is refused is answered with, in OpenAI's form."""

from __future__ import annotations

from typing import Any

import httpx


def refusal(response: httpx.Response, name: str) -> dict[str, Any]:
    """The error object of a 400. name: of the case, for who reads why the test failed."""
    assert response.status_code == 400, (name, response.text)
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}, (name, error)
    assert error["type"] == "invalid_request_error", (name, error)
    return error
