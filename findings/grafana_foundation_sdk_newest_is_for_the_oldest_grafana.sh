#!/usr/bin/env bash
# By version, the newest release of the SDK is the one for the oldest Grafana.
#
# Package    grafana-foundation-sdk 1769699998!10.1.0 and 1769699379!11.6.0 (PyPI, released on one day), packaging 26.0.
# Behaviour  Each release is made once for each version of Grafana, and each of these has an epoch of its own: the time at
#            which it was made. They are made from the newest Grafana to the oldest, so the oldest has the highest epoch.
#            pip compares epochs first. So an installation without a version brings the types of Grafana 10.1, and no
#            lower bound asks for more: >= with an epoch of 11.6 is satisfied by 10.1, >=11 by every release.
# Seen       1769699998!10.1.0 > 1769699379!11.6.0; dashboards of the first have schemaVersion 36, of the second 41; both
#            satisfy >=11 and >=1769699379!11.6.0.
# Source     The versions that the index lists; the comparison is PEP 440's.
# Effect     `pip install grafana-foundation-sdk`, or an update of the pinned version by a tool, brings builders that lack
#            what Grafana has had since 2023, and dashboards that Grafana migrates when it loads them. Nothing warns.
# Instead    Pin epoch and version exactly, and choose by the part behind the epoch.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip packaging==26.0
pip --target "$folder/oldest" 'grafana-foundation-sdk==1769699998!10.1.0'
pip --target "$folder/newest" 'grafana-foundation-sdk==1769699379!11.6.0'
schema_version() {
    PYTHONPATH="$folder/$1" "$folder/venv/bin/python" -c \
        'from grafana_foundation_sdk.models.dashboard import Dashboard; print(Dashboard().schema_version)'
}
OLDEST=$(schema_version oldest) NEWEST=$(schema_version newest) "$folder/venv/bin/python" - <<'PYTHON'
import os

from packaging.specifiers import SpecifierSet
from packaging.version import Version

of_10_1, of_11_6 = Version("1769699998!10.1.0"), Version("1769699379!11.6.0")
print(f"newest by version: {max(of_10_1, of_11_6)}")
assert max(of_10_1, of_11_6) == of_10_1
for bound in (">=11", ">=1769699379!11.6.0"):
    print(f"{of_10_1} satisfies {bound}: {of_10_1 in SpecifierSet(bound)}")
    assert of_10_1 in SpecifierSet(bound)
schemas = {"10.1": int(os.environ["OLDEST"]), "11.6": int(os.environ["NEWEST"])}
print(f"schemaVersion by Grafana's version: {schemas}")
assert schemas == {"10.1": 36, "11.6": 41}, "changed: other schema versions"
print("as found: the newest release of the SDK is for the oldest Grafana")
PYTHON
