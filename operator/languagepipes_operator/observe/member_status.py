"""Asks a member for its /status on its pod's telemetry port. It decides nothing, and knows no pods."""

from __future__ import annotations

import aiohttp
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import TELEMETRY_PORT
from pydantic import ValidationError

_ANSWER = aiohttp.ClientTimeout(total=2.0)


async def ask_member(http: aiohttp.ClientSession, host: str, *, port: int = TELEMETRY_PORT) -> MemberStatus | None:
    """None if it does not answer within two seconds, or answers something else."""
    where = f"[{host}]" if ":" in host else host
    try:
        async with http.get(f"http://{where}:{port}/status", timeout=_ANSWER, allow_redirects=False) as answer:
            return MemberStatus.model_validate_json(await answer.read())
    except (aiohttp.ClientError, OSError, ValidationError):
        return None
