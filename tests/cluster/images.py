"""Images for the nodes: unpacked once into a containerd root that is kept, and linked from there into each node's.

A node image has gigabytes of torch in it. Lower layers are never written to, so nodes share their files by hard links;
containerd's databases are small and copied.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster import programs
from cluster.namespaces import NodeNamespaces
from cluster.processes import ClusterError, ProcessGroup

PAUSE = "docker.io/library/test-cluster-pause:1"
SHARED = ("io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs")
METADATA = "io.containerd.metadata.v1.bolt"


class ImageStore:
    """The kept images. `hold` changes them; `seed` makes a containerd root with all of them."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or programs.cache() / "containerd"
        self.folder.mkdir(parents=True, exist_ok=True)

    def hold(self, archives: Sequence[Path]) -> None:
        """Hold the pause image and the images of these archives; drop those whose archives changed or are gone.

        An archive is known by its path, size and time of change: what is held costs nothing. Raises ClusterError.
        """
        wanted = {_key(archive): archive for archive in (programs.pause(), *archives)}
        record = self.folder / "archives.json"
        with self._locked():
            held: dict[str, list[str]] = json.loads(record.read_text()) if record.exists() else {}
            if wanted.keys() <= held.keys():
                return
            record.unlink(missing_ok=True)  # until this is done, nothing is known to be held
            kept = {key: images for key, images in held.items() if _is_current(key)}
            try:
                kept = self._changed(kept, wanted)
            except ClusterError:
                # An import that was killed half-way can leave a layer without its parent: begin anew, once.
                shutil.rmtree(self.folder / "root")
                kept = self._changed({}, wanted)
            record.write_text(json.dumps(kept))

    def _changed(self, kept: dict[str, list[str]], wanted: dict[str, Path]) -> dict[str, list[str]]:
        """Add what is wanted and not kept, then drop the rest. Raises ClusterError."""
        with self._containerd() as ctr:
            # A name that an import moves leaves the layers that it had, which the new image may share, to collection.
            for number, name in enumerate(ctr("images", "list", "--quiet").split()):
                ctr("images", "tag", "--force", name, f"replaced-{number}:1")
            kept = dict(kept)
            for key in wanted.keys() - kept.keys():
                kept[key] = self._add(ctr, wanted[key])
            self._drop_all_but(ctr, {image for images in kept.values() for image in images})
        return kept

    @staticmethod
    def _add(ctr: Ctr, archive: Path) -> list[str]:
        if archive == programs.pause():
            with tempfile.TemporaryDirectory() as folder:
                return ctr.load(write_pause_archive(Path(folder) / "pause.tar"))
        return ctr.load(archive)

    @staticmethod
    def _drop_all_but(ctr: Ctr, names: set[str]) -> None:
        for name in set(ctr("images", "list", "--quiet").split()) - names:
            ctr("images", "remove", name)
        # A removal that waits for the collection of garbage, which also takes what a tag pointed to before it moved.
        ctr("images", "tag", PAUSE, "garbage:1")
        ctr("images", "remove", "--sync", "garbage:1")

    def seed(self, root: Path) -> None:
        """Make a containerd root that holds the same images, in seconds and without a second copy of their files."""
        with self._locked():
            root.mkdir(parents=True)
            for name in (*SHARED, METADATA):
                (root / name).mkdir()
            for name in SHARED:
                source = self.folder / "root" / name
                copy = ["cp", "--archive", "--link", "--no-target-directory", str(source), str(root / name)]
                subprocess.run(copy, check=True, capture_output=True)
            for database in (self.folder / "root").glob("io.containerd.*/*.db"):
                target = root / database.parent.name / database.name
                target.unlink(missing_ok=True)  # a link so far, and a database is written to
                shutil.copy2(database, target)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _containerd(self) -> Iterator[Ctr]:
        """A containerd on the kept root, for as long as the block runs."""
        processes = ProcessGroup(self.folder / "logs")
        socket = self.folder / "containerd.sock"
        config = self.folder / "containerd.toml"
        config.write_text(
            containerd_config(
                root=self.folder / "root", state=Path("/run/containerd"), socket=socket, cni_folder=None, cni_plugins=""
            )
        )
        try:
            namespaces = NodeNamespaces(
                processes, name="images", ready=self.folder / "namespaces-are-ready", network=False
            )
            processes.start("images-containerd", ["containerd", "--config", config], prefix=namespaces.prefix)
            ctr = Ctr(socket)
            processes.wait_until(ctr.answers, what="containerd of the kept images", timeout_seconds=60)
            yield ctr
        finally:
            processes.stop()
            socket.unlink(missing_ok=True)


class Ctr:
    """containerd's own client."""

    def __init__(self, socket: Path) -> None:
        self._command = ["ctr", "--address", str(socket), "--namespace", "k8s.io"]

    def answers(self) -> bool:
        return subprocess.run([*self._command, "version"], capture_output=True, check=False).returncode == 0

    def __call__(self, *arguments: str) -> str:
        """Standard output. Raises ClusterError."""
        result = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise ClusterError(f"ctr {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def load(self, archive: Path) -> list[str]:
        """Import and unpack an archive; the names of its images. Raises ClusterError."""
        images = re.findall(r"^unpacking (\S+) ", self("images", "import", str(archive)), re.MULTILINE)
        if not images:
            raise ClusterError(f"no image in {archive}")
        return images


def write_pause_archive(path: Path) -> Path:
    """The image of our own pause program, as `docker save` would write it; the same bytes each time."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = programs.pause().stat().st_size, 0o755
        with programs.pause().open("rb") as program:
            tar.addfile(entry, program)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def containerd_config(*, root: Path, state: Path, socket: Path, cni_folder: Path | None, cni_plugins: str) -> str:
    """containerd 1.6's configuration; without a CNI folder it serves no kubelet."""
    lines = [
        "version = 2",
        f'root = "{root}"',
        f'state = "{state}"',
        "[grpc]",
        f'address = "{socket}"',
    ]
    if cni_folder is None:
        lines.insert(3, 'disabled_plugins = ["io.containerd.grpc.v1.cri"]')
        return "\n".join(lines) + "\n"
    lines += [
        '[plugins."io.containerd.grpc.v1.cri"]',
        f'sandbox_image = "{PAUSE}"',
        "restrict_oom_score_adj = true",
        '[plugins."io.containerd.grpc.v1.cri".cni]',
        f'bin_dir = "{cni_plugins}"',
        f'conf_dir = "{cni_folder}"',
    ]
    return "\n".join(lines) + "\n"


def _key(archive: Path) -> str:
    facts = archive.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {archive.resolve()}"


def _is_current(key: str) -> bool:
    """Whether the archive is still there as it was."""
    archive = Path(key.split(" ", 2)[2])
    return archive.exists() and _key(archive) == key
