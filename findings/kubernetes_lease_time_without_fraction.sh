#!/usr/bin/env bash
# The client for Python writes a Lease's renewTime without a fraction when its microseconds are zero.
#
# Package    kubernetes 37.0.2, both clients (kubernetes.client and kubernetes.aio.client).
# Behaviour  renewTime and acquireTime of a Lease are of the type MicroTime: exactly six digits after the second. The
#            client serialises every datetime with datetime.isoformat(), which leaves the fraction out when
#            microseconds are 0.
# Seen       renewTime '2026-01-02T03:04:05+00:00', where '2026-01-02T03:04:05.000000+00:00' is meant.
# Source     the method sanitize_for_serialization of ApiClient returns obj.isoformat() for a datetime or date, with
#            no regard for the field's type. Kubernetes' apimachinery reads a MicroTime with time.Parse and a layout
#            of six digits, which refuses a text without them, so an API server cannot decode such a Lease.
# Effect     One renewal in a million fails where the time comes from the clock, and each one where the time was
#            rounded to seconds (`.replace(microsecond=0)`).
# Instead    Format the time yourself: `moment.isoformat(timespec="microseconds")`, and send the Lease as a dict.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check kubernetes==37.0.2 aiohttp
"$folder/venv/bin/python" - <<'PYTHON'
import re
from datetime import UTC, datetime

from kubernetes import client
from kubernetes.aio import client as aio_client

MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
whole_second = datetime(2026, 1, 2, 3, 4, 5, 0, tzinfo=UTC)
a_moment_later = whole_second.replace(microsecond=7)

for package in (client, aio_client):
    lease = package.V1Lease(spec=package.V1LeaseSpec(acquire_time=a_moment_later, renew_time=whole_second))
    # Serialisation alone: no connection pool and no event loop, which the constructors would make or ask for.
    api = package.ApiClient.__new__(package.ApiClient)
    spec = api.sanitize_for_serialization(lease)["spec"]
    print(package.__name__, spec)
    assert MICRO_TIME.fullmatch(spec["acquireTime"]), "a time with microseconds is not written as a MicroTime"
    assert spec["renewTime"] == "2026-01-02T03:04:05+00:00", "changed: a time of microsecond 0 is written otherwise"
    assert not MICRO_TIME.fullmatch(spec["renewTime"])
print("as found: a time whose microseconds are 0 has no fraction, so it is no MicroTime")
PYTHON
