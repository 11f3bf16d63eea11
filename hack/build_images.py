#!/usr/bin/env python3
"""Build the images with buildah, each into an archive that `ctr images import` and `docker load` take.

    hack/build_images.py [node] [operator] [client] [models]     # all four by default

Needs root and Debian bookworm with buildah and debootstrap. For tests and CI on a machine that reaches package mirrors
but no image registry: the base image is made by debootstrap from the machine's own apt sources. Anyone else builds the
two Dockerfiles directly (docs/images.md).

Archives lie in ~/.cache/languagepipes/images/ and are named by image id; `--print` prints their paths alone, as JSON.
What has not changed is not built again. Mirrors, indexes and certificates of this machine are used while building and
written to no image and no file that stays.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ARCHIVES = CACHE / "languagepipes" / "images"
RELEASE = "bookworm"
BASE_PACKAGES = "ca-certificates,python3"
BUILD_PACKAGES = ("gcc", "libc6-dev", "python3-dev", "python3-pip")
# In the base, for nobody: documentation, other languages, package lists that hold this machine's mirror.
BASE_LEAVES_OUT = (
    *("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
    *("var/cache/apt", "var/lib/apt/lists"),
)
TLS = "/etc/ssl/certs"
LAYER_ID = 11  # digits of an image's id that `buildah bud` prints for each step
CODE = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore", "hack/image", "api")


@dataclass(frozen=True)
class Image:
    """One image: its Dockerfile and context (relative to the repository), and the paths that it depends on."""

    name: str
    dockerfile: str
    inputs: tuple[str, ...]
    context: str = "."


IMAGES = {
    image.name: image
    for image in (
        Image("node", "Dockerfile.node", (*CODE, "node")),
        Image("operator", "Dockerfile.operator", (*CODE, "operator")),
        Image("client", "tests/e2e/images/Dockerfile.client", ("constraints.txt", ".dockerignore", "hack/image/uv")),
        Image(
            "models",
            "tests/e2e/images/Dockerfile.models",
            (".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf",),
            context=".cache/models",
        ),
    )
}


def main() -> int:
    """Build what is asked for. Returns 0, or 1 if a build failed (its output is above)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="image", help=f"of {', '.join(IMAGES)}; all by default")
    parser.add_argument("--torch", default="torch", help="TORCH_REQUIREMENT: torch or torch==2.15.0+cpu")
    parser.add_argument("--torch-index", default="", help="TORCH_INDEX_URL: an index to look for torch in first")
    parser.add_argument("--print", action="store_true", help="build nothing; print the last build's archives as JSON")
    options = parser.parse_args()
    if unknown := set(options.images) - set(IMAGES):
        parser.error(f"no image is called {', '.join(sorted(unknown))}")
    if options.print:
        print(json.dumps({name: str(archive) for name in IMAGES if (archive := newest(name))}, indent=2))
        return 0
    if missing := [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]:
        parser.error(f"{' and '.join(missing)} not found: apt-get install {' '.join(missing)}")
    ARCHIVES.mkdir(parents=True, exist_ok=True)
    arguments = {"TORCH_REQUIREMENT": options.torch, "TORCH_INDEX_URL": options.torch_index}
    with (ARCHIVES / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second build waits for the first, then finds its layers
        try:
            base, build = bases()
            for name in options.images or IMAGES:
                produce(IMAGES[name], {"BASE_IMAGE": base, "BUILD_IMAGE": build} | arguments)
            forget_stale({base, build})
        except subprocess.CalledProcessError as error:
            say(f"failed with status {error.returncode}: {' '.join(map(str, error.cmd[:2]))} …")
            return 1
    return 0


def produce(image: Image, arguments: dict[str, str]) -> None:
    """Build an image and write its archive, unless both are there and nothing that goes into them has changed."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tag = f"languagepipes-{image.name}:{version}"
    wanted = digest_of(image, [tag, *arguments.values()])
    record = ARCHIVES / f"{image.name}.json"
    known = json.loads(record.read_text()) if record.exists() else {}
    archive = newest(image.name)
    if archive and known.get("inputs") == wanted and known["image"] == image_id(f"localhost/{tag}"):
        say(f"{tag}: nothing changed, {archive}")
        return

    with timed(f"{tag}: build"):
        with build_secrets() as secrets, uv_cache() as environment:
            declared = (ROOT / image.dockerfile).read_text()
            layers = follow(
                *("buildah", "bud", "--layers", "--isolation", "chroot", "--network", "host", "--format", "oci"),
                *("--pull-never", "--volume", f"{TLS}:{TLS}:ro", *secrets),
                *(f"--build-arg={key}={value}" for key, value in arguments.items() if f"ARG {key}" in declared),
                *([f"--build-arg=VERSION={version}"] if "ARG VERSION" in declared else []),
                *("--file", ROOT / image.dockerfile, "--tag", f"localhost/{tag}", ROOT / image.context),
                environment=environment,
            )
        identity = image_id(f"localhost/{tag}")
    archive = ARCHIVES / f"{image.name}-{identity[:12]}.tar"
    if not archive.exists():
        for stale in ARCHIVES.glob(f"{image.name}-*.tar*"):
            stale.unlink()
        with timed(f"{tag}: archive"):
            unfinished = archive.with_suffix(".tar.unfinished")
            target = f"docker-archive:{unfinished}:{tag}"
            run("buildah", "push", "--quiet", "--disable-compression", f"localhost/{tag}", target)
            unfinished.rename(archive)
    written = {"tag": tag, "image": identity, "inputs": wanted, "layers": layers}
    record.write_text(json.dumps(written, indent=2) + "\n")
    say(f"{tag}: {identity[:12]}, {archive.stat().st_size / 1e6:.0f} MB in {archive}")


def forget_stale(names: set[str]) -> None:
    """Remove from buildah's store what the last builds did not use: old images and stages, bases not in `names`."""
    used = {layer for record in ARCHIVES.glob("*.json") for layer in json.loads(record.read_text()).get("layers", [])}
    tagged = {
        tuple(line.split())
        for line in output("buildah", "images", "--format", "{{.ID}} {{.Name}}:{{.Tag}}").splitlines()
    }
    old = [name for _, name in tagged if re.match("localhost/languagepipes-(build-)?base:", name) and name not in names]
    nameless = [identity for identity, name in tagged if name.startswith("<none>") and identity[:LAYER_ID] not in used]
    for stale in nameless + old:
        # An image that another one is made from stays; it goes with that one, the next time.
        subprocess.run(["buildah", "rmi", stale], check=False, capture_output=True)


def bases() -> tuple[str, str]:
    """The names of the base image (Debian with Python) and of the one that compiles; made if they are not there."""
    recipe = hashlib.sha256(repr((RELEASE, BASE_PACKAGES, BUILD_PACKAGES, BASE_LEAVES_OUT)).encode()).hexdigest()[:12]
    base, build = (f"localhost/languagepipes-{name}:{recipe}" for name in ("base", "build-base"))
    if not image_id(base):
        with timed(f"base image from Debian {RELEASE} by debootstrap"), container("scratch") as (name, root):
            options = ("--variant=minbase", f"--include={BASE_PACKAGES}")
            run("debootstrap", *options, RELEASE, root, debian_mirror(), quiet=True)
            (root / "etc/apt/sources.list").write_text("")
            for path in BASE_LEAVES_OUT:
                shutil.rmtree(root / path)
            for log in (root / "var/log").rglob("*"):
                log.unlink() if log.is_file() else None
            run("buildah", "config", "--cmd", "python3", "--env", "LANG=C.UTF-8", name)
            run("buildah", "commit", "--quiet", "--format", "oci", name, base)
    if not image_id(build):
        with timed(f"build image: the base and {', '.join(BUILD_PACKAGES)}"), container(base) as (name, _):
            lent = ("/etc/apt/sources.list.d", "/etc/apt/apt.conf.d", TLS)
            install = f"""
                export DEBIAN_FRONTEND=noninteractive
                mkdir -p /var/cache/apt/archives/partial /var/lib/apt/lists/partial
                apt-get -qq update
                apt-get -qq install --no-install-recommends --yes {" ".join(BUILD_PACKAGES)}
                rm -rf /var/cache/apt /var/lib/apt/lists
            """
            run(
                *("buildah", "run", "--isolation", "chroot", "--network", "host"),
                *(f"--volume={folder}:{folder}:ro" for folder in lent),
                *(name, "--", "sh", "-ec", install),
                quiet=True,
            )
            run("buildah", "commit", "--quiet", "--format", "oci", name, build)
    return base, build


def debian_mirror() -> str:
    """The archive that this machine's apt installs RELEASE from. Raises LookupError if it has none."""
    format_ = ("--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
    for line in output("apt-get", "indextargets", *format_).splitlines():
        address, release, component = line.rsplit(" ", 2)
        if (release, component) == (RELEASE, "main"):
            return address
    raise LookupError(f"apt has no source for Debian {RELEASE} main, from which the base image is made")


@contextlib.contextmanager
def container(image: str) -> Iterator[tuple[str, Path]]:
    """A working container and where it is mounted; removed in the end."""
    name = output("buildah", "from", "--pull-never", image) if image != "scratch" else output("buildah", "from", image)
    try:
        yield name, Path(output("buildah", "mount", name))
    finally:
        run("buildah", "rm", name, quiet=True)


@contextlib.contextmanager
def build_secrets() -> Iterator[list[str]]:
    """`buildah bud` options that give pip and uv this machine's index and certificates, in files that go away again."""
    configured = dict(
        line.split("=", 1) for line in output(sys.executable, "-m", "pip", "config", "list").splitlines() if "=" in line
    )
    # As `pip config list` prints it: global.index-url='…', :env:.index-url='…'; the environment comes last and wins.
    values = {key.rsplit(".", 1)[-1]: value.strip("'") for key, value in configured.items()}
    with tempfile.TemporaryDirectory() as folder:
        pip, uv = Path(folder, "pip.conf"), Path(folder, "uv.toml")
        taken = ("index-url", "extra-index-url", "trusted-host")
        passed: dict[str, str] = {key: values[key] for key in taken if key in values}
        if Path(TLS, "ca-certificates.crt").exists():
            passed["cert"] = f"{TLS}/ca-certificates.crt"
        pip.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in passed.items()))
        lines = ["system-certs = true"]
        if "index-url" in passed:
            lines.append(f"index-url = {json.dumps(passed['index-url'])}")
        if "extra-index-url" in passed:
            lines.append(f"extra-index-url = {json.dumps(passed['extra-index-url'].split())}")
        if "trusted-host" in passed:
            lines.append(f"allow-insecure-host = {json.dumps(passed['trusted-host'].split())}")
        uv.write_text("\n".join(lines) + "\n")
        yield [f"--secret=id=pip.conf,src={pip}", f"--secret=id=uv.toml,src={uv}"]


@contextlib.contextmanager
def uv_cache() -> Iterator[dict[str, str]]:
    """An environment in which buildah's cache mount "uv" is this machine's own cache of uv: 5.6 GB less to download.

    buildah 1.28 keeps cache mounts in $TMPDIR/buildah-cache/<id>.
    """
    own = CACHE / "uv"
    own.mkdir(parents=True, exist_ok=True)
    temporary = ARCHIVES / "tmp"
    mounts = temporary / "buildah-cache"
    mounts.mkdir(parents=True, exist_ok=True)
    link = mounts / "uv"
    if not link.is_symlink():
        link.symlink_to(own)
    yield os.environ | {"TMPDIR": str(temporary)}


def digest_of(image: Image, facts: list[str]) -> str:
    """A digest of all that an image is made of: its Dockerfile, inputs and build arguments."""
    digest = hashlib.sha256(repr(facts).encode())
    for name in (image.dockerfile, *image.inputs):
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix not in (".pyc", ".so") and ".egg-info" not in str(file):
                digest.update(f"{file.relative_to(ROOT)} {file.stat().st_mode}\n".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def newest(name: str) -> Path | None:
    """The archive of an image's last build."""
    record = ARCHIVES / f"{name}.json"
    if not record.exists():
        return None
    archive = ARCHIVES / f"{name}-{json.loads(record.read_text())['image'][:12]}.tar"
    return archive if archive.exists() else None


def image_id(name: str) -> str:
    """The id of an image in buildah's store; "" if it is not there."""
    return subprocess.run(
        ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", name],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run(*command: str | Path, quiet: bool = False, environment: dict[str, str] | None = None) -> None:
    """Run a command; its output is shown, or with `quiet` only if it fails. Raises CalledProcessError."""
    if not quiet:
        subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)
        return
    done = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        sys.stderr.write((done.stdout + done.stderr).decode(errors="replace")[-4000:])
        raise subprocess.CalledProcessError(done.returncode, command)


def follow(*command: str | Path, environment: dict[str, str]) -> list[str]:
    """Run `buildah bud`: its steps are shown, all else only if it fails. Returns the ids of the layers that it used."""
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "STEP" in line:
                print(f"    {line.rstrip():.110}", file=sys.stderr, flush=True)
    if process.returncode:
        sys.stderr.writelines(lines[-100:])
        raise subprocess.CalledProcessError(process.returncode, command)
    return sorted({match[1] for line in lines if (match := re.match(rf"--> ([0-9a-f]{{{LAYER_ID}}})$", line))})


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    say(f"{what} …")
    yield
    say(f"{what}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
