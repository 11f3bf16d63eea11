"""Build the programs of a test cluster from Kubernetes' published modules, once, into the user's cache.

From empty caches the big one takes about eight minutes on two cores; the others are built beside it. What is there
already costs nothing, and whoever asks while another builds waits for it. `python3 tests/cluster/build.py` needs no
environment.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):  # run by its path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster import programs
from cluster.processes import ClusterError

STRIPPED = ("-trimpath", "-buildvcs=false")
STATIC = {"CGO_ENABLED": "0"}
_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
_OPERATOR_VERSION = f"@{programs.PROMETHEUS_OPERATOR}"


def build(say: Callable[[str], None] = print) -> Path:
    """The folder with all programs, built if they are not there. Raises ClusterError with the compiler's words."""
    folder = programs.folder()
    _make(
        folder,
        {
            "cluster": _build_cluster,
            "pause": _build_pause,
            "coredns": lambda path: _install(programs.COREDNS, path),
            "helm": lambda path: _install(programs.HELM, path),
            "local-path-provisioner": lambda path: _install(programs.LOCAL_PATH_PROVISIONER, path),
        },
        say,
    )
    parts = ("promtool", "prometheus")
    _make(programs.prometheus_folder(), {name: partial(_install_prometheus, name) for name in parts}, say)
    operator: dict[str, Callable[[Path], None]] = {
        "prometheus-operator": _build_prometheus_operator,
        "crds": _copy_crds,
    }
    _make(programs.prometheus_operator_folder(), operator, say)
    return folder


def build_metrics_server(say: Callable[[str], None] = print) -> None:
    """What horizontal autoscaling reads; only hack/check_changes.py has it. Raises as above."""
    module = f"sigs.k8s.io/metrics-server/cmd/metrics-server@{programs.METRICS_SERVER}"
    _make(programs.metrics_server_folder(), {"metrics-server": lambda path: _install(module, path)}, say)


def _make(folder: Path, steps: Mapping[str, Callable[[Path], None]], say: Callable[[str], None]) -> None:
    """Take each step whose program is not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = {name: step for name, step in steps.items() if not (folder / name).exists()}
        if not missing:
            return
        if shutil.which("go") is None:
            raise ClusterError("building the test cluster's programs needs Go 1.26 or newer: https://go.dev/dl")
        say(f"Building {', '.join(missing)} (all from nothing: 10 to 25 min on two cores; kept in {folder})")

        def make(name: str) -> None:
            began = time.monotonic()
            unfinished = folder / f"{name}.partial"
            missing[name](unfinished)
            unfinished.rename(folder / name)
            say(f"  {name}: {time.monotonic() - began:.0f} s")

        # Two at a time: one that downloads or links beside one that compiles.
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(make, missing))


def _build_cluster(path: Path) -> None:
    found = re.search(r"k8s\.io/kubernetes v((\d+)\.(\d+)\.\d+)", (programs.HERE / "go.mod").read_text())
    if found is None:
        raise ClusterError("go.mod names no version of k8s.io/kubernetes")
    version, major, minor = found.groups()
    package = "k8s.io/component-base/version"
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    settings = " ".join(f"-X {package}.{name}={value}" for name, value in values.items())
    _go("build", *STRIPPED, "-ldflags", f"-s -w {settings}", "-o", str(path), ".")


def _build_pause(path: Path) -> None:
    _go("build", *STRIPPED, "-ldflags", "-s -w", "-o", str(path), "./pause", environment=STATIC)


def _install_prometheus(name: str, path: Path) -> None:
    """Of service discoveries only Kubernetes' is compiled in, beside files and HTTP: all of them are the SDKs of two
    dozen clouds. Without the tag `builtinassets` it has no pages, which the module as published lacks."""
    module = f"github.com/prometheus/prometheus/cmd/{name}@{programs.PROMETHEUS}"
    _install(module, path, "-tags", "remove_all_sd,enable_kubernetes_sd")


def _build_prometheus_operator(path: Path) -> None:
    """From a module of its own: `go install` refuses one that, as this one, replaces modules in its go.mod."""
    package = f"{_OPERATOR}/cmd/operator"
    with TemporaryDirectory(dir=path.parent) as folder:
        where = Path(folder)
        _go("mod", "init", "build", folder=where)
        _go("get", package + _OPERATOR_VERSION, folder=where)
        _go("build", *STRIPPED, "-ldflags", "-s -w", "-o", str(path), package, folder=where, environment=STATIC)


def _copy_crds(path: Path) -> None:
    """Of the Prometheus operator, which its module has as files."""
    module = json.loads(_go("mod", "download", "-json", _OPERATOR + _OPERATOR_VERSION, folder=path.parent))
    shutil.copytree(Path(module["Dir"], "example", "prometheus-operator-crd"), path, dirs_exist_ok=True)


def _install(module: str, path: Path, *options: str) -> None:
    """`go install` of a published program, outside of our module."""
    with TemporaryDirectory(dir=path.parent) as folder:
        environment = {**STATIC, "GOBIN": folder}
        _go("install", *STRIPPED, "-ldflags", "-s -w", *options, module, folder=Path(folder), environment=environment)
        (program,) = Path(folder).iterdir()
        program.rename(path)


def _go(*arguments: str, folder: Path = programs.HERE, environment: Mapping[str, str] | None = None) -> str:
    """What it prints on stdout."""
    result = subprocess.run(
        ["nice", "go", *arguments],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise ClusterError(f"go {' '.join(arguments)}:\n{result.stderr[-4000:]}")
    return result.stdout


def main() -> int:
    try:
        print(build())
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
