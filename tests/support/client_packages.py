"""Installs the clients at their pinned versions, once for each set of pins, under ~/.cache/languagepipes/clients.

A folder is complete when it has its name: it is filled under another one. Nothing is skipped: without Node, a JDK,
Maven, or a way to PyPI, npm and Maven Central, the tests fail.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from support.paths import ROOT

PINS = ROOT / "tests" / "e2e" / "clients"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "languagepipes" / "clients"
REQUIREMENTS, CONSTRAINTS, PACKAGE_JSON, POM = (
    PINS / name for name in ("requirements.txt", "constraints.txt", "package.json", "pom.xml")
)
# The plugin's own version is pinned too.
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
UV = Path(sys.executable).with_name("uv")


def python() -> Path:
    """The interpreter of an environment with the Python clients."""

    def install(folder: Path) -> None:
        _run(UV, "venv", "--quiet", "--relocatable", "--python", sys.executable, folder)
        _run(
            *(UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python"),
            *("--constraint", CONSTRAINTS, "--requirement", REQUIREMENTS),
        )

    pins = [REQUIREMENTS.read_bytes(), CONSTRAINTS.read_bytes(), sys.version.encode()]
    return _once("python", pins, install) / "bin" / "python"


def node_modules() -> Path:
    """A node_modules with the clients for Node."""

    def install(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(PACKAGE_JSON, folder)
        _run("npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)

    return _once("node", [PACKAGE_JSON.read_bytes(), _run("node", "--version")], install) / "node_modules"


def java_classes() -> str:
    """The class path of the clients for Java."""

    def install(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(POM, folder)
        _run("mvn", "--batch-mode", "--quiet", COPY_DEPENDENCIES, "-DoutputDirectory=jars", cwd=folder)

    return f"{_once('java', [POM.read_bytes(), COPY_DEPENDENCIES.encode()], install)}/jars/*"


def _once(kind: str, pins: list[bytes], install: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(b"\0".join(pins)).hexdigest()[:16]
    folder = CACHE / f"{kind}-{digest}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as partial:
            filled = Path(partial) / kind
            install(filled)
            try:
                filled.rename(folder)
            except OSError:  # another run was faster
                assert folder.is_dir(), f"cannot make {folder}"
    return folder


def _run(*command: str | Path, cwd: Path | None = None) -> bytes:
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=280, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout


if __name__ == "__main__":
    print(python())
    print(node_modules())
    print(java_classes())
