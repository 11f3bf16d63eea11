"""Writes the Grafana dashboards of the chart, charts/languagepipes/dashboards/*.json, from hack/dashboards.

    python hack/generate_dashboards.py           write them
    python hack/generate_dashboards.py --check   exit 1 if one is not up to date

Made with grafana-foundation-sdk (https://github.com/grafana/grafana-foundation-sdk, Apache 2.0), whose version says for
which Grafana: newer ones migrate what they load.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dashboards import fleet, pipe
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

FOLDER = Path(__file__).resolve().parent.parent / "charts" / "languagepipes" / "dashboards"


def text(dashboard: Dashboard) -> str:
    """The content of its file."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check the files; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    checking = parser.parse_args().check
    wanted = {FOLDER / "pipe.json": text(pipe.build()), FOLDER / "fleet.json": text(fleet.build())}
    status = 0
    for file, content in wanted.items():
        if not checking:
            file.parent.mkdir(exist_ok=True)
            file.write_text(content, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != content:
            print(f"{file} is not what hack/dashboards says: run {sys.executable} {__file__}", file=sys.stderr)
            status = 1
    for file in sorted({*FOLDER.glob("*"), *wanted} - wanted.keys()):
        print(f"{file} is none of the dashboards that hack/dashboards makes: delete it", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
