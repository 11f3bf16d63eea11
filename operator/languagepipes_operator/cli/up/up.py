"""`languagepipes up`: one pipe on this machine, by the same plan and the same node processes as in a cluster.

What it takes is checked before anything starts; what it started is gone when it returns, whatever happened.

    UpError             the pipe cannot be served here; the message has the reason and the remedy
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from languagepipes_api.facts import ModelFacts
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe
from languagepipes_api.store_answers import Problem

from languagepipes_operator.cli.gpus import Gpu, gpus
from languagepipes_operator.cli.machine import this_machine
from languagepipes_operator.cli.up import members, snapshot
from languagepipes_operator.cli.up.addresses import HeldPorts, PortTaken
from languagepipes_operator.cli.up.authority import Credentials
from languagepipes_operator.cli.up.display import Display, display_on, where_layers_run
from languagepipes_operator.cli.up.members import MemberProcess, Secrets
from languagepipes_operator.cli.up.observe import Observer, SourceFailed, StoreObserver
from languagepipes_operator.cli.up.options import UpOptions
from languagepipes_operator.cli.up.processes import Command, Supervisor
from languagepipes_operator.cli.up.signals import Interrupts
from languagepipes_operator.cli.up.snapshot import END_MODEL, STORE, Snapshot
from languagepipes_operator.planning import Node, PlanError, plan

_STARTING_TICK_SECONDS = 0.25
_READY_TICK_SECONDS = 1.0


class UpError(Exception):
    """The pipe cannot be served here."""


def run(pipe: LanguagePipe, options: UpOptions) -> int:
    """Serve `pipe` until Ctrl-C or SIGTERM: 0. If it cannot be served: 1, with the reason on stderr."""
    try:
        with HeldPorts() as ports, Interrupts() as interrupts:
            start = check(pipe, options, ports)
            directory = private_directory()
            with (
                display_on(sys.stdout) as display,
                Observer() as observer,
                Supervisor(directory) as supervisor,
            ):
                up = _Up(pipe, options, start, ports, interrupts, display, observer, supervisor)
                try:
                    up.serve()
                finally:
                    up.stop()
    except UpError as error:
        print(f"languagepipes up: {error}", file=sys.stderr)
        return 1
    return 0


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


class _Up:
    """One run. Its methods belong to the main thread."""

    def __init__(
        self,
        pipe: LanguagePipe,
        options: UpOptions,
        start: Start,
        ports: HeldPorts,
        interrupts: Interrupts,
        display: Display,
        observer: Observer,
        supervisor: Supervisor,
    ) -> None:
        self._pipe = pipe
        self._options = options
        self._start = start
        self._ports = ports
        self._interrupts = interrupts
        self._display = display
        self._observer = observer
        self._supervisor = supervisor
        self._directory = supervisor.directory
        self._log_dir = options.log_dir or self._directory / "logs"
        self._credentials = Credentials(self._directory / "tls", namespace=pipe.namespace, pipe=pipe.name)
        self._work: dict[str, str] = {}
        self._telemetry: dict[str, str] = {}
        self._heard: dict[str, tuple[int, MemberStatus]] = {}
        self._plan: Plan | None = None
        self._announced = False
        self._ready_text: str | None = None
        self._store_address = ports.hold()

    def serve(self) -> None:
        """Store, facts, plan, members; then watch until asked to stop. Raises UpError."""
        store = self._start_store()
        facts = self._wait_for_facts(store)
        if facts is None:
            return
        self._plan = self._make_plan(facts)
        self._start_member_processes(self._plan)
        while not self._interrupts.stopping:
            self._tick()

    def stop(self) -> None:
        """Stop every member; a second request to stop ends their grace."""
        if self._options.ready_file is not None and self._ready_text is not None:
            self._options.ready_file.unlink(missing_ok=True)
        if self._interrupts.stopping:
            self._display.say("stopping (once more to kill)")
        stops = max(1, self._interrupts.stops)
        self._supervisor.stop(hurry=lambda: self._interrupts.stops > stops)

    def _start_store(self) -> StoreObserver:
        identity = Identity(self._pipe.namespace, self._pipe.name, -1, "store")
        operator_dir = self._credentials.issue(members.operator_identity(self._pipe))
        settings = members.store_settings(
            self._pipe,
            listen=self._store_address,
            telemetry=self._ports.hold(),
            tls_dir=self._credentials.issue(identity),
            cache_dir=self._options.cache_dir,
            token_file=self._start.secrets.token_file,
        )
        self._telemetry[STORE] = settings.telemetry_listen
        self._work[STORE] = ""
        self._supervisor.start([members.command(STORE, settings, directory=self._directory, log_dir=self._log_dir)])
        store = StoreObserver(self._store_address, tls_dir=operator_dir, store=identity)
        self._observer.watch(STORE, settings.telemetry_listen)
        self._observer.watch_store(store)
        return store

    def _wait_for_facts(self, store: StoreObserver) -> ModelFacts | None:
        """None if asked to stop meanwhile."""
        while not self._interrupts.stopping:
            try:
                facts = store.facts()
            except SourceFailed as error:
                raise UpError(f"{error.reason}: {error}") from error
            if facts is not None:
                return facts
            self._tick()
        return None

    def _make_plan(self, facts: ModelFacts) -> Plan:
        try:
            return plan(self._pipe.spec, facts, (self._start.node,))
        except PlanError as error:
            raise UpError(f"{error.reason}: {error.message}") from error

    def _start_member_processes(self, plan: Plan) -> None:
        plan_file = self._directory / "plan.json"
        plan_file.write_text(json.dumps(plan.to_json()))
        found = members.member_processes(
            self._pipe,
            plan,
            ports=self._ports,
            api=self._start.api,
            store=self._store_address,
            plan_file=plan_file,
            tls_dirs={
                identity: self._credentials.issue(identity)
                for identity in members.member_process_identities(self._pipe, plan)
            },
            api_keys_dir=self._start.secrets.api_keys_dir,
        )
        gpu_of = members.share_gpus(found, self._start.gpus)
        for member_process in found:
            self._work[member_process.name] = member_process.work
            self._telemetry[member_process.name] = member_process.settings.telemetry_listen
            self._observer.watch(member_process.name, member_process.settings.telemetry_listen)
        self._supervisor.start(
            [self._command(member_process, gpu_of.get(member_process.name)) for member_process in found]
        )

    def _command(self, member_process: MemberProcess, gpu: Gpu | None) -> Command:
        return members.command(
            member_process.name, member_process.settings, directory=self._directory, log_dir=self._log_dir, gpu=gpu
        )

    def _tick(self) -> None:
        """Tend, observe, show; then wait for a signal or the next moment to look. Raises UpError."""
        self._credentials.renew()
        for death in self._supervisor.tend():
            self._observer.forget(death.name)
            self._display.say(
                f"{death.name} {death}; it starts again "
                + (f"in {death.restart_in_seconds:.1f} s" if death.restart_in_seconds else "now"),
                *(f"    {line}" for line in death.termination_message),
            )
        seen = self._look()
        self._display.show(seen)
        if seen.store is not None and seen.store.phase == "Failed":
            error = seen.store.error or Problem(reason="SourceFailed", message="the store does not say why")
            raise UpError(f"{error.reason}: {error.message}")
        if seen.ready and not self._announced:
            self._announced = True
            self._display.say(*self._announcement(seen))
        self._keep_ready_file(seen)
        tick = _READY_TICK_SECONDS if seen.ready else _STARTING_TICK_SECONDS
        restart = self._supervisor.next_restart_seconds()
        self._interrupts.wait(tick if restart is None else min(tick, restart))

    def _look(self) -> Snapshot:
        observation = self._observer.observe()
        for name, report in observation.members.items():
            pid = self._supervisor.members[name].pid
            if report is not None and pid is not None:
                self._heard[name] = (pid, report)
        return snapshot.take(
            self._pipe.name,
            self._supervisor.members,
            self._work,
            observation,
            heard=self._heard,
            now=time.monotonic(),
            url=f"http://{self._start.api}/v1",
        )

    def _announcement(self, seen: Snapshot) -> Sequence[str]:
        body = json.dumps({"model": self._pipe.served_name, "messages": [{"role": "user", "content": "Say hello."}]})
        key = ' -H "Authorization: Bearer $API_KEY"' if self._start.secrets.api_keys_dir else ""
        return (
            f"{self._pipe.name} is ready at {seen.url}",
            *where_layers_run([seen.members[-1], *seen.members[1:-1]]),
            f"  curl {seen.url}/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}",
        )

    def _keep_ready_file(self, seen: Snapshot) -> None:
        """It is there exactly while the pipe is ready, and names the processes of the moment."""
        path = self._options.ready_file
        if path is None or self._plan is None:
            return
        text = self._ready_json(self._plan, seen) if seen.ready else None
        if text == self._ready_text:
            return
        self._ready_text = text
        if text is None:
            path.unlink(missing_ok=True)
            return
        # Atomic, since whoever waits for the file reads it at once.
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)

    def _ready_json(self, plan: Plan, seen: Snapshot) -> str:
        views = {
            view.name: {
                "name": view.name,
                "layers": view.work,
                "pid": view.pid,
                "telemetry": self._telemetry[view.name],
            }
            for view in seen.members
        }
        return json.dumps(
            {
                "url": seen.url,
                "model": self._pipe.served_name,
                "plan_hash": plan.hash,
                "stages": [{**views[stage.name], "layers": str(stage.layers)} for stage in plan.stages],
                "end_model": views[END_MODEL],
                "store": views[STORE],
            },
            indent=2,
        )
