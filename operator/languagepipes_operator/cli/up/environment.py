"""Which of this process's variables members get. Light to import."""

from __future__ import annotations

import os
from collections.abc import Mapping

# The prefix of members' own settings (`languagepipes_api.member_settings.PREFIX`, which takes long to import).
_PREFIX = "LANGUAGEPIPES_"
# The store alone may talk to the Hub.
_HUB_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def inherited(environment: Mapping[str, str] = os.environ, *, secrets: bool = False) -> dict[str, str]:
    """Without anything that would be taken for a setting. secrets: also what opens the Hub."""
    return {
        key: value
        for key, value in environment.items()
        if not key.startswith(_PREFIX) and (secrets or key not in _HUB_SECRETS)
    }
