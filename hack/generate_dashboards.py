"""Writes the Grafana dashboards of the chart, charts/languagepipes/dashboards/*.json, from hack/dashboards.

    python hack/generate_dashboards.py           write them
    python hack/generate_dashboards.py --check   exit 1 if one is not up to date

Made with grafana-foundation-sdk (https://github.com/grafana/grafana-foundation-sdk, Apache 2.0), whose version says for
which Grafana: newer ones migrate what they load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dashboards import fleet, pipe
from generated_files import write_or_check
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).resolve().parent.parent / "charts" / "languagepipes" / "dashboards"


def text(dashboard: Dashboard) -> str:
    """The content of its file."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check the files; returns the exit status."""
    wanted = {FOLDER / "pipe.json": text(pipe.build()), FOLDER / "fleet.json": text(fleet.build())}
    status = write_or_check(wanted, description="Write the Grafana dashboards.", source="hack/dashboards says")
    for file in sorted({*FOLDER.glob("*"), *wanted} - wanted.keys()):
        print(f"{file} is none of the dashboards that hack/dashboards makes: delete it", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
