"""How long `languagepipes up` takes to be Ready, with and without what members measured at earlier starts.

    python -m benchmarks.start [--source URL] [--dtype float32] [--rounds 4]

Starts in turns over one cache: without its arithmetic.json (members measure which arithmetic is fastest) and with it.
For each start the seconds until Ready and the processor time of all processes, stop included.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.models import GGUF
from benchmarks.processes import Server, free_port

_PIPE = """\
apiVersion: languagepipes.io/v1alpha1
kind: LanguagePipe
metadata: {{name: start}}
spec:
  model: {{source: "{source}", dtype: {dtype}, maxContextLength: 512}}
  stages: {{count: 3}}
"""


def start(pipe: Path, cache: Path, folder: Path) -> tuple[float, float]:
    """Seconds until Ready, and seconds of processor time."""
    ready_file = folder / "ready.json"
    before, begun = processor_seconds(), time.perf_counter()
    up = Server(
        [
            str(Path(sys.executable).with_name("languagepipes")),
            *("up", str(pipe), "--port", str(free_port())),
            *("--ready-file", str(ready_file), "--cache-dir", str(cache)),
        ],
        log=folder / "up.log",
        environment=os.environ,
        directory=folder,
    )
    try:
        up.wait_until(ready_file.exists, what="languagepipes up", timeout_seconds=300)
        seconds = time.perf_counter() - begun
    finally:
        up.stop(signal_number=signal.SIGINT)
    return seconds, processor_seconds() - before


def processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=f"file://{GGUF}", help="spec.model.source (default: SmolLM2)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"measured": [], "remembered": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipe, cache = folder / "pipe.yaml", folder / "cache"
        pipe.write_text(_PIPE.format(source=options.source, dtype=options.dtype))
        start(pipe, cache, folder)  # converts the file, and warms the page cache
        for _ in range(options.rounds):
            (cache / "arithmetic.json").unlink(missing_ok=True)
            for way in found:
                found[way].append(start(pipe, cache, folder))
    for index, what in enumerate(("s until Ready", "s of processor time")):
        for way, starts in found.items():
            samples = sorted(each[index] for each in starts)
            print(f"{what:20} {way:10} {statistics.median(samples):6.1f}  ({samples[0]:.1f} to {samples[-1]:.1f})")
        ratios = sorted(b[index] / a[index] for a, b in zip(*found.values(), strict=True))
        print(f"{what:20} {'ratio':10} {statistics.median(ratios):6.2f}  ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
