"""Checks, before `languagepipes up` starts anything, packages, GPUs, the files of Secrets, directories and the port.

UpError             the pipe cannot be served here; the message has the reason and the remedy
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from languagepipes_api.spec import LanguagePipe

from languagepipes_operator.cli.gpus import Gpu, gpus
from languagepipes_operator.cli.machine import this_machine
from languagepipes_operator.cli.up.addresses import HeldPorts, PortTaken
from languagepipes_operator.cli.up.members import Secrets
from languagepipes_operator.cli.up.options import UpOptions
from languagepipes_operator.planning import Node


class UpError(Exception):
    """The pipe cannot be served here."""


def private_directory() -> Path:
    """A directory that only this user can read: it will hold private keys. Raises UpError."""
    try:
        return Path(tempfile.mkdtemp(prefix="languagepipes-"))
    except OSError as error:
        raise UpError(f"no private directory can be made ({error}): set TMPDIR to where there is space") from error


@dataclass(frozen=True)
class Start:
    """What was checked before anything started. api: the address of the OpenAI API."""

    api: str
    secrets: Secrets
    gpus: tuple[Gpu, ...]
    node: Node


def check(pipe: LanguagePipe, options: UpOptions, ports: HeldPorts) -> Start:
    """Everything that can be wrong and can be known now. Holds the API's port. Raises UpError."""
    if pipe.spec.replicas == 0:
        raise UpError("spec.replicas is 0, so there is nothing to run: set it to 1, or leave it out")
    for module in ("languagepipes_node", "torch"):
        if importlib.util.find_spec(module) is None:
            raise UpError(f'{module} is not installed: pip install "languagepipes[node]"')
    secrets = find_secrets(pipe, options.secrets_dir)
    found = gpus()
    if (wanted := gpu_fields(pipe)) and not found:
        raise UpError(
            f"{wanted[0]} is GPU, but nvidia-smi finds no GPU on this machine: write CPU there, or install the driver"
        )
    for path, what in ((options.cache_dir, "--cache-dir"), (options.log_dir, "--log-dir")):
        if path is not None:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UpError(f"{what} {path} cannot be made ({error.strerror}): choose another directory") from error
    ready_file = options.ready_file
    if ready_file is not None:
        if not ready_file.parent.is_dir():
            raise UpError(f"--ready-file {ready_file}: there is no directory {ready_file.parent}: make it first")
        # One that an `up` left that was killed would say that this one is ready.
        ready_file.unlink(missing_ok=True)
    try:
        api = ports.hold(options.port)
    except PortTaken as error:
        raise UpError(str(error)) from error
    except OSError as error:
        raise UpError(f"port {options.port} may not be used ({error.strerror}): choose another with --port") from error
    node = replace(this_machine(), gpu_memory_bytes=tuple(gpu.memory_bytes for gpu in found))
    return Start(api, secrets, found, node)


def gpu_fields(pipe: LanguagePipe) -> list[str]:
    """The fields of the spec that ask for a GPU."""
    spec = pipe.spec
    devices = [("spec.endModel.device", spec.end_model.device), ("spec.stages.device", spec.stages.device)]
    devices += [
        (f"spec.stages.list[{index}].device", stage.device) for index, stage in enumerate(spec.stages.items or ())
    ]
    return [field for field, device in devices if device == "GPU"]


def find_secrets(pipe: LanguagePipe, secrets_dir: Path | None) -> Secrets:
    """The files that stand in for the Secrets which the pipe names. Raises UpError, naming field and file."""
    token, keys = pipe.spec.model.token_secret_ref, pipe.spec.server.api_keys_secret_ref
    for field, reference in (("spec.model.tokenSecretRef", token), ("spec.server.apiKeysSecretRef", keys)):
        if reference is not None and secrets_dir is None:
            raise UpError(
                f"{field} names the Secret {reference.name}, which only a cluster has: "
                f"put it into files DIR/{reference.name}/KEY and pass --secrets-dir DIR"
            )
    token_file = api_keys_dir = None
    if token is not None and secrets_dir is not None:
        token_file = secrets_dir / token.name / token.key
        if not token_file.is_file():
            raise UpError(f"spec.model.tokenSecretRef: there is no file {token_file}: write the token into it")
    if keys is not None and secrets_dir is not None:
        api_keys_dir = secrets_dir / keys.name
        if not api_keys_dir.is_dir() or not any(path.is_file() for path in api_keys_dir.iterdir()):
            raise UpError(
                f"spec.server.apiKeysSecretRef: there is no file in {api_keys_dir}: put one API key into each"
            )
    return Secrets(token_file, api_keys_dir)
