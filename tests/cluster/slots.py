"""The numbered places of this machine in which real clusters live: names, addresses and folders follow from the number.

A place is held by a lock that the kernel lets go of when its holder dies, and cleaned before it is used again, so a
crashed run leaves nothing for longer than until the next one.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cluster import programs
from cluster.processes import ClusterError

COUNT = 32
BLOCKS = ipaddress.ip_network("198.18.0.0/15")  # RFC 2544: for benchmarks, routed nowhere
GONE_SECONDS = 20.0


@dataclass
class Slot:
    """One place. Its /20 holds the nodes' network, the Services' and the pods', in that order."""

    number: int
    lock: IO[str]

    @property
    def name(self) -> str:
        """Bridge and cgroup are called so; links are called so with a suffix."""
        return f"lpc{self.number}"

    @property
    def folder(self) -> Path:
        """On the file system of the kept images, so that they can be linked into it."""
        return _folder() / str(self.number)

    @property
    def _base(self) -> int:
        return int(BLOCKS[self.number << 12])

    @property
    def address(self) -> str:
        """The bridge's own: API server and DNS listen there."""
        return str(ipaddress.ip_address(self._base + 1))

    def node_address(self, index: int) -> str:
        return str(ipaddress.ip_address(self._base + 10 + index))

    @property
    def service_cidr(self) -> str:
        return f"{ipaddress.ip_address(self._base + (4 << 8))}/22"

    @property
    def pods_cidr(self) -> str:
        return f"{ipaddress.ip_address(self._base + (8 << 8))}/21"

    def pod_cidr(self, index: int) -> str:
        """The pods of one node."""
        return f"{ipaddress.ip_address(self._base + ((8 + index) << 8))}/24"

    def link(self, index: int) -> str:
        """This machine's end of a node's only link."""
        return f"{self.name}n{index}"

    def cgroup(self, index: int) -> str:
        return f"/{self.name}/node-{index}"

    def release(self) -> None:
        self.lock.close()

    def clean(self) -> None:
        """Remove whatever a cluster in this place made. Its processes must have been killed, not waited for.

        Mounts and interfaces of the nodes lie in namespaces that end with their last process.
        """
        for link in _links(self.name):
            subprocess.run(["ip", "link", "delete", link], check=False, capture_output=True)
        for hierarchy in cgroup_hierarchies():
            _remove_cgroup(hierarchy / self.name)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)


def take() -> Slot:
    """The first free place, cleaned; so are others that a dead run left. Raises ClusterError if none is free."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    taken: Slot | None = None
    for number in range(COUNT):
        lock = (folder / f"{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        slot = Slot(number, lock)
        if taken is None:
            slot.clean()
            taken = slot
            continue
        if slot.folder.exists():
            slot.clean()
        slot.release()
    if taken is None:
        raise ClusterError(f"all {COUNT} places for a cluster are taken")
    return taken


def cgroup_hierarchies() -> list[Path]:
    """Where cgroups are mounted: one folder a controller (version 1) or one in all (version 2)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def make_cgroup(path: str) -> None:
    """Make a cgroup everywhere; one of cpuset may hold nothing until it has CPUs and memory nodes."""
    for hierarchy in cgroup_hierarchies():
        folder = hierarchy
        for name in Path(path.lstrip("/")).parts:
            parent, folder = folder, folder / name
            folder.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (folder / setting).exists() and (parent / setting).exists():
                    (folder / setting).write_text((parent / setting).read_text())
            controllers = parent / "cgroup.subtree_control"
            if controllers.exists():
                available = (parent / "cgroup.controllers").read_text().split()
                controllers.write_text(" ".join(f"+{name}" for name in available))


def _remove_cgroup(top: Path) -> None:
    """Remove a tree of cgroups once the processes in it, which have been killed, are gone. Raises ClusterError."""
    deadline = time.monotonic() + GONE_SECONDS
    for folder, _, _ in os.walk(top, topdown=False):
        while True:
            try:
                Path(folder).rmdir()
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"cannot remove the cgroup {folder}: {error}") from error
                time.sleep(0.05)


def _links(name: str) -> list[str]:
    """The bridge of this name and the links whose names begin with it and go on with a node's number."""
    links = [path.name for path in Path("/sys/class/net").iterdir()]
    return [link for link in links if link == name or link.startswith(f"{name}n")]


def _folder() -> Path:
    return programs.cache() / "running"
