"""llama.cpp as the source package of llama-cpp-python carries it: llama-server, alone or over two RPC servers.

    python -m benchmarks.llama_cpp_peer [--jobs N]      # build the programs and the GGUF files; 10 to 30 minutes

It is built for this processor: each instruction set that llama.cpp knows by name is switched on if the processor has
it. The GGUF files are made by llama-quantize from the Q4_1 file of `make model`, whose values are also those of
the bfloat16 safetensors that every other contender reads. All is kept under ~/.cache/languagepipes/peers, by version
and instruction sets.

The RPC servers share this machine's cores, as the members of a ring do, and take turns where one batch is computed, so
each has all cores. Their link has neither encryption nor authentication.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from benchmarks import machine
from benchmarks.models import GGUF
from benchmarks.peer_programs import PEERS, PeerMissing, PeerServers, cpu_flags, run_step
from benchmarks.processes import Server, free_port, listens

VERSION = "0.3.36"  # of llama-cpp-python
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
HOME = PEERS / f"llama.cpp-{VERSION}"
_SOURCE = HOME / "source"
_TARGETS = ("llama-server", "ggml-rpc-server", "llama-quantize")
_OPTIONS = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=OFF",
    "GGML_NATIVE=OFF",  # by name below, as far as the processor has it
    "GGML_RPC=ON",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_OPENSSL=OFF",
)
# CMake's names by those of /proc/cpuinfo.
_SETS = {
    "avx2": "GGML_AVX2",
    "fma": "GGML_FMA",
    "f16c": "GGML_F16C",
    "avx512f": "GGML_AVX512",
    "avx512vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
    "amx_tile": "GGML_AMX_TILE",
    "amx_int8": "GGML_AMX_INT8",
    "amx_bf16": "GGML_AMX_BF16",
}
Weights = Literal["BF16", "Q8_0", "Q4_1"]
RPC_SERVERS = 2
_SLOT_TOKENS = 1024  # context of each stream
_READY_SECONDS = 120.0


def set_options(flags: Collection[str]) -> dict[str, str]:
    """CMake's option for every instruction set: ON for those among `flags`, OFF for the others."""
    return {option: "ON" if flag in flags else "OFF" for flag, option in _SETS.items()}


def build_directory(flags: Collection[str]) -> Path:
    """One for each set of instruction sets, since this cache may meet another processor."""
    chosen = "-".join(flag.replace("_", "") for flag in _SETS if flag in flags)
    return HOME / f"build-{chosen or 'plain'}"


def build(*, jobs: int) -> Path:
    """The folder of the programs, built if they are not there. Raises PeerMissing."""
    flags = cpu_flags()
    if not flags:
        raise PeerMissing("llama.cpp: /proc/cpuinfo has no flags; this build knows x86 processors only")
    directory = build_directory(flags)
    programs = directory / "bin"
    if all((programs / name).exists() for name in _TARGETS):
        return programs
    for tool in ("cmake", "ninja", "cc", "c++"):
        if shutil.which(tool) is None:
            raise PeerMissing(f"llama.cpp: {tool} is not installed; it is needed to build it")
    source = _unpacked_source()
    options = [*_OPTIONS, *(f"{name}={value}" for name, value in set_options(flags).items())]
    configure: list[str | Path] = ["cmake", "-S", source, "-B", directory, "-G", "Ninja"]
    configure += [f"-D{option}" for option in options]
    run_step("llama.cpp: configure", configure, log=HOME / "configure.log")
    compile_: list[str | Path] = ["cmake", "--build", directory, "--parallel", str(jobs), "--target", *_TARGETS]
    run_step("llama.cpp: compile (10 to 30 minutes)", compile_, log=HOME / "compile.log")
    return programs


def _unpacked_source() -> Path:
    inside = _SOURCE / "vendor" / "llama.cpp"
    if (inside / "CMakeLists.txt").exists():
        return inside
    package = HOME / f"llama_cpp_python-{VERSION}.tar.gz"
    if not package.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        command += ["--dest", str(HOME), f"llama-cpp-python=={VERSION}"]
        run_step("llama.cpp: get its source from PyPI (77 MB)", command, log=HOME / "download.log")
    found = hashlib.sha256(package.read_bytes()).hexdigest()
    if found != _SHA256:
        raise PeerMissing(f"llama.cpp: {package} has the SHA-256 {found}, not {_SHA256}; delete it to get it again")
    unfinished = HOME / "source.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    with tarfile.open(package) as archive:
        archive.extractall(unfinished, filter="data")
    shutil.rmtree(_SOURCE, ignore_errors=True)
    (unfinished / f"llama_cpp_python-{VERSION}").rename(_SOURCE)
    unfinished.rmdir()
    return inside


def gguf_file(weights: Weights, programs: Path) -> Path:
    """SmolLM2 with such weights. Q4_1 is the file of `make model` itself. Raises PeerMissing."""
    if not GGUF.exists():
        raise PeerMissing(f"llama.cpp: {GGUF.name} is missing; run `make model` first")
    if weights == "Q4_1":
        return GGUF
    file = HOME / f"{GGUF.name.split('.')[0]}.{weights}.gguf"
    if not file.exists():
        unfinished = file.with_suffix(".part")
        command: list[str | Path] = [programs / "llama-quantize", "--allow-requantize", GGUF, unfinished, weights]
        run_step(f"llama.cpp: make {file.name}", command, log=HOME / f"quantize-{weights}.log")
        unfinished.rename(file)
    return file


class LlamaCpp(PeerServers):
    """llama-server with SmolLM2 in one process, or over two RPC servers. A context manager.

    streams: slots, that is, how many requests it computes at the same time. Raises PeerMissing or ServerFailed.
    """

    def __init__(self, weights: Weights, *, rpc: bool, streams: int) -> None:
        super().__init__()
        self.name = f"llama.cpp {weights}, {f'{RPC_SERVERS} RPC servers' if rpc else 'one process'}"
        self._weights: Weights = weights
        self._rpc, self._streams = rpc, streams

    def _start(self) -> None:
        cores = str(machine.cores())
        programs = build(jobs=machine.cores())
        file = gguf_file(self._weights, programs)
        port = free_port()
        # --fit would size the context by what a device has free; without it the figures say what was asked for.
        command = ["llama-server", "--model", str(file), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--threads", cores, "--threads-batch", cores, "--parallel", str(self._streams), "--fit", "off"]
        command += ["--ctx-size", str(self._streams * _SLOT_TOKENS), "--alias", self.model_id, "--cache-ram", "0"]
        if self._rpc:
            endpoints = [f"127.0.0.1:{free_port()}" for _ in range(RPC_SERVERS)]
            for number, endpoint in enumerate(endpoints, start=1):
                host, _, rpc_port = endpoint.partition(":")
                rpc_command = ["ggml-rpc-server", "--host", host, "--port", rpc_port, "--threads", cores]
                rpc_server = self._run(programs, rpc_command, f"rpc-{number}")
                rpc_server.wait_until(listens(endpoint), what=f"{self.name}: RPC", timeout_seconds=_READY_SECONDS)
            command += ["--rpc", ",".join(endpoints), "--gpu-layers", "all"]
        self.url = f"http://127.0.0.1:{port}/v1"
        server = self._run(programs, command, "server")
        server.wait_until(self._healthy, what=self.name, timeout_seconds=_READY_SECONDS)

    def _run(self, programs: Path, command: list[str], role: str) -> Server:
        logs = HOME / "logs" / f"{os.getpid()}-{self._weights}-{'rpc' if self._rpc else 'alone'}"
        logs.mkdir(parents=True, exist_ok=True)
        server = Server(
            [str(programs / command[0]), *command[1:]],
            log=logs / f"{role}.log",
            environment={name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")},
            directory=logs,
        )
        self._servers.append(server)
        return server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp_peer", description="Build llama.cpp.")
    parser.add_argument("--jobs", type=int, default=machine.cores(), help="compilers at a time (default: the cores)")
    options = parser.parse_args()
    try:
        programs = build(jobs=options.jobs)
        for weights in ("BF16", "Q8_0", "Q4_1"):
            print(gguf_file(weights, programs))
    except PeerMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(programs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
