"""The CRD, and a judge that knows nothing but it."""

from __future__ import annotations

import pytest
import yaml
from support.crd_judge import ApiServer, Json
from support.paths import CRD


@pytest.fixture(scope="session")
def crd() -> Json:
    return yaml.safe_load(CRD.read_text())


@pytest.fixture(scope="session")
def api_server(crd: Json) -> ApiServer:
    return ApiServer(crd)
