"""The built images as they are: their configuration from buildah, and their files to look at and to run read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.built_images import archives
from support.paths import ROOT

# What a runtime does for readOnlyRootFilesystem: true and an emptyDir at /tmp; its own namespaces leave nothing behind.
CHROOT = """
set -e
mount --make-rprivate /
mount --bind "$1" /mnt; mount -o remount,bind,ro /mnt
mount -t proc proc /mnt/proc
mount -t tmpfs -o mode=1777 tmpfs /mnt/tmp
mount --bind /dev /mnt/dev
if [ -n "$2" ]; then mkdir /mnt/tmp/volume; mount --bind "$2" /mnt/tmp/volume; fi
shift 2
exec chroot --userspec=65532:65532 /mnt env --ignore-environment --chdir=/tmp "$@"
"""


@dataclass(frozen=True)
class Image:
    """One built image: `config` and `history` as in the OCI image specification, its files mounted at `files`."""

    config: dict[str, Any]
    history: list[str]
    files: Path
    bytes: int

    def run(self, *command: str, volume: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run as uid 65532 with a read-only root, an empty /tmp, no network, and `volume` at /tmp/volume."""
        return subprocess.run(
            [
                *("unshare", "--mount", "--pid", "--fork", "--net"),
                *("sh", "-c", CHROOT, "sh", str(self.files), str(volume or "")),
                *self.config["Env"],
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    def python(self, program: str) -> str:
        """What a Python program prints in the image. Fails the test if it fails."""
        done = self.run("python", "-c", program)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def find(self, pattern: str) -> list[str]:
        """Paths in the image that match a glob, from its root."""
        return [f"/{path.relative_to(self.files)}" for path in self.files.glob(pattern)]


@pytest.fixture(scope="session")
def built() -> Iterator[Callable[[str], Image]]:
    """Images by name, built first where something has changed."""
    missing = [tool for tool in ("buildah", "debootstrap", "unshare") if not shutil.which(tool)]
    if os.geteuid() != 0 or missing:
        pytest.fail(f"needs root and {', '.join(missing) or 'nothing else'}")
    subprocess.run([sys.executable, ROOT / "hack" / "build_images.py"], check=True)
    containers: list[str] = []

    def buildah(*arguments: str) -> str:
        return subprocess.run(["buildah", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def open_image(name: str) -> Image:
        tag = json.loads(archive_record(name).read_text())["tag"]
        containers.append(buildah("from", "--pull-never", f"localhost/{tag}"))
        described = json.loads(buildah("inspect", "--type", "image", f"localhost/{tag}"))["OCIv1"]
        return Image(
            config=described["config"],
            history=[entry.get("created_by", "") for entry in described["history"]],
            files=Path(buildah("mount", containers[-1])),
            bytes=archive(name).stat().st_size,
        )

    yield open_image
    for container in containers:
        buildah("rm", container)


def archive(name: str) -> Path:
    """The archive that `hack/build_images.py` made last."""
    return archives()[name]


def archive_record(name: str) -> Path:
    """What `hack/build_images.py` noted beside it."""
    return archive(name).with_name(f"{name}.json")


@pytest.fixture(scope="session")
def node(built: Callable[[str], Image]) -> Image:
    return built("node")


@pytest.fixture(scope="session")
def operator(built: Callable[[str], Image]) -> Image:
    return built("operator")


@pytest.fixture(scope="session", params=["node", "operator"])
def image(request: pytest.FixtureRequest) -> Image:
    """Each of the two that are published."""
    return request.getfixturevalue(request.param)
