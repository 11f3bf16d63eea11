#!/usr/bin/env bash
# huggingface_hub raises errors of httpx2, which `except httpx.HTTPError` does not catch.
#
# Package    huggingface_hub 2.4.0, with httpx2 2.16.2; httpx 0.28.1 beside it.
# Behaviour  Version 2 is built on httpx2, a distribution of its own with modules and classes of its own. A refused
#            connection arrives as httpx2.ConnectError, and HfHubHTTPError derives from httpx2.HTTPError (and
#            OSError). Neither is an httpx.HTTPError, although the names are the same and httpx may be installed
#            beside it.
# Seen       a refused connection: httpx2.ConnectError < httpx2.NetworkError < … < httpx2.HTTPError < Exception.
# Source     the module huggingface_hub.utils._http imports httpx2, and the package's metadata require httpx2 and not
#            httpx.
# Effect     A program that catches httpx.HTTPError around calls of the Hub lets a refused connection through as an
#            unknown error, and neither an import error nor a type checker shows it.
# Instead    Catch httpx2.HTTPError around calls of huggingface_hub.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  huggingface_hub==2.4.0 httpx2==2.16.2 httpx==0.28.1
HF_HOME="$folder/hub" "$folder/venv/bin/python" - <<'PYTHON'
import socket

import httpx
import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

with socket.socket() as taken:  # a port that is held and not listened on, so that it refuses connections
    taken.bind(("127.0.0.1", 0))
    api = HfApi(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
    try:
        api.model_info("owner/name")
    except Exception as error:
        caught = error

print("a refused connection:", " < ".join(f"{c.__module__}.{c.__qualname__}" for c in type(caught).__mro__))
print("HfHubHTTPError:      ", " < ".join(f"{c.__module__}.{c.__qualname__}" for c in HfHubHTTPError.__mro__))
assert isinstance(caught, httpx2.ConnectError), "changed: no httpx2.ConnectError any more"
assert not isinstance(caught, httpx.HTTPError), "changed: it is an error of httpx, too"
assert issubclass(HfHubHTTPError, httpx2.HTTPError), "changed: HfHubHTTPError is no httpx2.HTTPError"
assert not issubclass(HfHubHTTPError, httpx.HTTPError), "changed: HfHubHTTPError is an httpx.HTTPError"
print("as found: errors are those of httpx2 and not those of httpx")
PYTHON
