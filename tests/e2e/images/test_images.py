"""The images that are published: what is in them, what is not, and that they run as a restricted pod runs them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import ROOT

SITE = "opt/languagepipes/lib/python3.11/site-packages"
pytestmark = [pytest.mark.kubernetes, pytest.mark.slow, pytest.mark.timeout(1800)]  # from nothing, they are built first


def test_every_image_runs_as_a_numeric_user_other_than_root(image):
    assert image.config["User"] == "65532:65532"
    assert (
        image.python("import os, pwd; print(os.getuid(), os.getgid(), pwd.getpwuid(os.getuid()).pw_dir)")
        == "65532 65532 /tmp"
    )


def test_an_image_says_what_it_is(image):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = image.config["Labels"]

    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert "org.opencontainers.image.source" in labels
    assert image.config["Entrypoint"] == [labels["org.opencontainers.image.title"]]


def test_no_image_holds_a_compiler_an_installer_or_their_caches(image):
    tools = ("gcc*", "cc", "ld", "*-linux-gnu-gcc*", "pip*", "uv", "uv-program")
    found = [
        path
        for folder in ("usr/bin", "usr/local/bin", "opt/languagepipes/bin")
        for tool in tools
        for path in image.find(f"{folder}/{tool}")
    ]
    assert not found
    assert image.find(f"{SITE}/pip") == image.find(f"{SITE}/uv") == []
    assert not [
        path
        for folder in ("tmp", "root/.cache", "var/cache/apt", "var/lib/apt/lists", "run/secrets")
        for path in image.find(f"{folder}/*")
    ]


def test_no_image_tells_where_its_packages_came_from(image):
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    addresses = subprocess.run(targets, capture_output=True, text=True, check=True).stdout.split()
    configured = subprocess.run(
        ["python3", "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    hosts = {
        match for text in (*addresses, configured) for match in re.findall(r"https?://(?:[^@/\s]*@)?([^/:\s']+)", text)
    }
    # The public ones tell nothing of this machine.
    hosts = {host for host in hosts if not re.search(r"(?:\A|\.)(?:debian|pypi)\.org\Z", host)}
    told = json.dumps([image.config, image.history]) + "".join(
        path.read_text(errors="replace")
        for folder in ("etc", "usr/share/languagepipes", f"{SITE}/languagepipes-0.1.0.dist-info", "var/log")
        for path in (image.files / folder).rglob("*")
        if path.is_file() and not path.is_symlink()
    )

    assert not [host for host in hosts if host in told]


def test_every_package_has_the_pinned_version(image):
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    program = (
        "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions(path=['/%s'])))"
    )
    installed = dict(entry.split("==") for entry in image.python(program % SITE).split())

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    unlike = {
        name: version for name, version in installed.items() if pins.get(canonical(name)) != version.split("+")[0]
    }
    assert unlike == {"languagepipes": "0.1.0"}


def test_every_module_is_compiled_and_never_looked_up_again(image):
    sources = list((image.files / SITE).glob("languagepipes_*/**/*.py"))
    compiled = [path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in sources]

    assert sources
    # PEP 552: bit 0 is "by hash", bit 1 "check the source".
    assert {path.read_bytes()[4:8] for path in compiled} == {b"\x01\x00\x00\x00"}


IMPORT_EVERYTHING = """
import importlib, json, pkgutil, traceback
imported, failed = [], {}
for package in PACKAGES:
    found = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    for name in [package, *(module.name for module in found)]:
        if name.endswith("._kernels"):
            continue  # no module of Python: the compiled kernels, which model.kernels opens by ctypes
        try:
            importlib.import_module(name)
            imported.append(name)
        except Exception:
            failed[name] = traceback.format_exc().splitlines()[-1]
print(json.dumps([imported, failed]))
"""


@pytest.mark.parametrize(("name", "packages"), [("node", ("api", "node")), ("operator", ("api", "operator"))])
def test_every_module_of_ours_can_be_imported_in_its_image(name, packages, request):
    image = request.getfixturevalue(name)
    expected = {
        ".".join(path.relative_to(ROOT / package).with_suffix("").parts).removesuffix(".__init__")
        for package in packages
        for path in (ROOT / package).glob("languagepipes_*/**/*.py")
    }
    program = f"PACKAGES = {[f'languagepipes_{package}' for package in packages]}\n{IMPORT_EVERYTHING}"

    imported, failed = json.loads(image.python(program).splitlines()[-1])

    assert failed == {}
    assert set(imported) == expected


def test_our_own_code_is_the_last_layer_and_torch_an_early_one(node):
    files = [entry for entry in node.history if "/bin/sh -c #(nop) COPY" in entry or "uv pip install" in entry]

    assert ["/torch.txt" in files[1], "/node.txt" in files[3], "in /opt/languagepipes" in files[4]] == [True] * 3
    assert len(files) == 5


def test_the_operator_image_is_small_and_has_nothing_of_the_node(operator):
    # 74 MB of them are the package kubernetes, which has a client with threads and one for asyncio.
    assert operator.bytes < 280e6
    for package in ("torch", "numpy", "transformers", "languagepipes_node"):
        assert not operator.find(f"{SITE}/{package}")
    assert not operator.find(f"{SITE}/nvidia*")


def test_the_node_image_has_no_triton_no_headers_and_nothing_of_the_operator(node):
    assert node.bytes < 5e9
    for package in (
        "triton",
        "languagepipes_operator",
        "kopf",
        "kubernetes",
        "torch/include",
        "nvidia/*/include",
    ):
        assert not node.find(f"{SITE}/{package}")


def test_the_node_runs_with_a_read_only_root(node):
    printed = node.python(
        "import torch\n"
        "import languagepipes_node.stage.main, languagepipes_node.end_model.main, languagepipes_node.store.main\n"
        "from languagepipes_node.model import end, kernels, stack\n"
        "product = torch.ones(8, 8) @ torch.ones(8, 8)\n"
        "print(torch.__version__.split('+')[0], kernels.available(), product.sum().item())\n"
        "try: open('/opt/languagepipes/written', 'w')\n"
        "except OSError as error: print(error.strerror)"
    )
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    has_avx2 = {"avx2", "fma", "f16c"} <= set(Path("/proc/cpuinfo").read_text().split())

    assert pinned
    assert printed.splitlines() == [f"{pinned[1]} {has_avx2} 512.0", "Read-only file system"]


def test_a_node_without_settings_says_which_and_exits_with_2(node):
    done = node.run(*node.config["Entrypoint"])

    assert done.returncode == 2
    assert "languagepipes-node: LANGUAGEPIPES_ROLE: " in done.stderr


def test_the_node_reads_a_models_facts_from_a_mounted_claim(node, tmp_path):
    model = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not model.exists():
        pytest.fail("needs the model: make model")
    claim = tmp_path / "models"
    claim.mkdir()
    shutil.copy(model, claim)
    tmp_path.chmod(0o755)
    arguments = ("facts", "--source", f"pvc://models/{model.name}", "--volumes-dir", "/tmp/volume")

    done = node.run(*node.config["Entrypoint"], *arguments, volume=tmp_path)

    assert done.returncode == 0, done.stderr + done.stdout
    assert len(json.loads(done.stdout)["facts"]["layers"]) == 30


def test_the_operator_runs_with_a_read_only_root(operator):
    operator.python("import languagepipes_operator.main, languagepipes_operator.cli.main, kopf, kubernetes.aio")


def test_an_operator_without_settings_says_which_and_exits_with_2(operator):
    done = operator.run(*operator.config["Entrypoint"])

    assert done.returncode == 2, done.stderr
    assert "LANGUAGEPIPES_OPERATOR_NODE_IMAGE" in done.stderr


def test_the_client_image_has_the_openai_package(built: Callable):
    assert built("client").python("import openai; print(openai.__name__)") == "openai"


def test_the_models_image_fills_a_volume_as_often_as_it_is_run(built: Callable, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    models = built("models")

    for _ in range(2):
        done = models.run(*models.config["Entrypoint"], "/tmp/volume", volume=volume)
        assert done.returncode == 0, done.stderr

    (copied,) = volume.iterdir()
    (original,) = (models.files / "models").iterdir()
    assert copied.name == original.name
    assert (copied.stat().st_uid, copied.stat().st_size) == (65532, original.stat().st_size)
