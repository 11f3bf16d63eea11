"""The role `store` as a process, and questions to its telemetry port."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from languagepipes_api.member_settings import MemberSettings


@contextmanager
def store_process(settings: MemberSettings) -> Iterator[subprocess.Popen]:
    environment = {**os.environ, **settings.to_environment()}
    process = subprocess.Popen(
        [sys.executable, "-m", "languagepipes_node"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(address: str, path: str) -> tuple[int, str]:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
