#!/usr/bin/env bash
# One route that streams events makes FastAPI's OpenAPI document invalid for the version that it states.
#
# Package    fastapi 0.165.0, with openapi-spec-validator 0.9.0, which holds the OpenAPI Initiative's JSON Schemas.
# Behaviour  The document states openapi 3.1.0. A route with response_class=EventSourceResponse gets the key itemSchema
#            in its media type, which came with OpenAPI 3.2; in 3.1 a media type has no key but those listed and x-….
#            The same document is valid if it states 3.2.0.
# Seen       "Unevaluated properties are not allowed ('itemSchema' was unexpected)"
# Source     openapi/utils.py writes itemSchema for text/event-stream and application/jsonl whatever the version is;
#            the attribute openapi_version of FastAPI is 3.1.0, and its documentation says that FastAPI generates
#            OpenAPI 3.1.0.
# Effect     A check of the document in CI fails with the first streaming route, and a generator of clients that is
#            strict refuses all of the document, not that route alone.
# Instead    app.openapi_version = "3.2.0" where the readers know 3.2. Where they know 3.1 only, take itemSchema out in
#            a function of your own in app.openapi.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  fastapi==0.165.0 openapi-spec-validator==0.9.0
"$folder/venv/bin/python" - <<'PYTHON'
from collections.abc import AsyncIterable

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from openapi_spec_validator import OpenAPIV31SpecValidator, OpenAPIV32SpecValidator


async def one() -> int:
    return 1


async def many() -> AsyncIterable[int]:
    yield 1


def complaints(app: FastAPI) -> list[str]:
    document = app.openapi()
    validator = {"3.1.0": OpenAPIV31SpecValidator, "3.2.0": OpenAPIV32SpecValidator}[document["openapi"]]
    errors = validator(document).iter_errors()
    found = [f"{' '.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    print(document["openapi"], list(document["paths"]), found or "valid")
    return found


plain = FastAPI()
plain.get("/one")(one)
assert plain.openapi_version == "3.1.0", "changed: another version by default"
assert complaints(plain) == [], "a document without streams is not valid"

streaming = FastAPI()
streaming.get("/many", response_class=EventSourceResponse)(many)
assert any("itemSchema" in text for text in complaints(streaming)), "changed: a valid document with a stream"

streaming_32 = FastAPI()
streaming_32.openapi_version = "3.2.0"
streaming_32.get("/many", response_class=EventSourceResponse)(many)
assert complaints(streaming_32) == [], "changed: not valid as 3.2 either"
print("as found: a streaming route brings a key of OpenAPI 3.2 into a document that states 3.1")
PYTHON
