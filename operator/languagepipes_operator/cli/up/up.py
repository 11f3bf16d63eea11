"""`languagepipes up`: one pipe on this machine, by the same plan and the same node processes as in a cluster.

`checks` finds what is wrong before anything starts. What this module started is gone when it returns, in every case.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence

from languagepipes_api.facts import ModelFacts
from languagepipes_api.member_status import MemberStatus
from languagepipes_api.names import Identity
from languagepipes_api.plan import Plan
from languagepipes_api.spec import LanguagePipe
from languagepipes_api.store_answers import Problem

from languagepipes_operator.cli.gpus import Gpu
from languagepipes_operator.cli.up import members, snapshot
from languagepipes_operator.cli.up.addresses import HeldPorts
from languagepipes_operator.cli.up.authority import Credentials
from languagepipes_operator.cli.up.checks import Start, UpError, check, private_directory
from languagepipes_operator.cli.up.display import Display, display_on, where_layers_run
from languagepipes_operator.cli.up.fork_server import ForkServer
from languagepipes_operator.cli.up.members import MemberProcess
from languagepipes_operator.cli.up.observe import Observer, SourceFailed, StoreObserver
from languagepipes_operator.cli.up.options import UpOptions
from languagepipes_operator.cli.up.processes import Command, Death, Supervisor
from languagepipes_operator.cli.up.ready_file import ReadyFile
from languagepipes_operator.cli.up.restarts import TRIES
from languagepipes_operator.cli.up.signals import Interrupts
from languagepipes_operator.cli.up.snapshot import STORE, Snapshot
from languagepipes_operator.planning import PlanError, plan

_STARTING_TICK_SECONDS = 0.1
_READY_TICK_SECONDS = 1.0
# While nothing can start before what is waited for.
_WAITING_TICK_SECONDS = 0.05


def run(pipe: LanguagePipe, options: UpOptions, fork_server: ForkServer) -> int:
    """Serve `pipe` until Ctrl-C or SIGTERM: 0. If it cannot be served: 1, with the reason on stderr."""
    try:
        with HeldPorts() as ports, Interrupts() as interrupts:
            start = check(pipe, options, ports)
            directory = private_directory()
            with (
                display_on(sys.stdout) as display,
                Observer() as observer,
                Supervisor(directory, fork_server=fork_server) as supervisor,
            ):
                up = _Up(pipe, options, start, ports, interrupts, display, observer, supervisor, fork_server)
                try:
                    up.serve()
                finally:
                    up.stop()
    except UpError as error:
        print(f"languagepipes up: {error}", file=sys.stderr)
        return 1
    return 0


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
        fork_server: ForkServer,
    ) -> None:
        self._pipe = pipe
        self._options = options
        self._start = start
        self._ports = ports
        self._interrupts = interrupts
        self._display = display
        self._observer = observer
        self._supervisor = supervisor
        self._fork_server = fork_server
        self._fork_server_lost = False
        self._directory = supervisor.directory
        self._log_dir = options.log_dir or self._directory / "logs"
        self._credentials = Credentials(self._directory / "tls", namespace=pipe.namespace, pipe=pipe.name)
        self._work: dict[str, str] = {}
        self._telemetry: dict[str, str] = {}
        self._heard: dict[str, tuple[int, MemberStatus]] = {}
        self._plan: Plan | None = None
        self._announced = False
        self._ready_file = ReadyFile(options.ready_file, model=pipe.served_name)
        self._store_address = ports.hold()

    def serve(self) -> None:
        """Store, facts, plan, members; then watch until asked to stop. Raises UpError."""
        store = self._start_store()
        facts = self._wait_for_facts(store)
        if facts is None:
            return
        self._plan = self._make_plan(facts)
        self._wait_for_fork_server()
        if self._interrupts.stopping:
            return
        self._start_member_processes(self._plan)
        while not self._interrupts.stopping:
            self._tick()

    def stop(self) -> None:
        """Stop every member; a second request to stop ends their grace."""
        self._ready_file.remove()
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
            self._tick(at_most_seconds=_WAITING_TICK_SECONDS)
        return None

    def _wait_for_fork_server(self) -> None:
        """Until members can be forked, or must be started one by one, or asked to stop."""
        while not self._interrupts.stopping and not self._fork_server.settled():
            self._tick(at_most_seconds=_WAITING_TICK_SECONDS)

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

    def _tick(self, *, at_most_seconds: float = _READY_TICK_SECONDS) -> None:
        """Tend, observe, show; then wait for a signal or the next moment to look. Raises UpError."""
        self._credentials.renew()
        self._look_at_fork_server()
        for death in self._supervisor.tend():
            self._observer.forget(death.name)
            self._display.say(f"{death.name} {death}{_next(death)}", *(f"    {line}" for line in death.last_lines))
        seen = self._look()
        self._display.show(seen)
        if seen.store is not None and seen.store.phase == "Failed":
            error = seen.store.error or Problem(reason="SourceFailed", message="the store does not say why")
            raise UpError(f"{error.reason}: {error.message}")
        # After the store, whose failure ends the others too.
        if (given_up := self._supervisor.given_up()) is not None:
            raise UpError(self._why_given_up(given_up))
        if seen.ready and not self._announced:
            self._announced = True
            self._display.say(*self._announcement(seen))
        self._ready_file.keep(seen, self._plan, self._telemetry)
        tick = _READY_TICK_SECONDS if seen.ready else _STARTING_TICK_SECONDS
        restart = self._supervisor.next_restart_seconds()
        self._interrupts.wait(min(tick, at_most_seconds, tick if restart is None else restart))

    def _look_at_fork_server(self) -> None:
        self._fork_server.settled()
        if self._fork_server.lost and not self._fork_server_lost:
            self._fork_server_lost = True
            self._display.say(
                f"the fork server is lost ({self._fork_server.lost}); members that run go on, and one that starts "
                "imports its modules itself"
            )

    def _look(self) -> Snapshot:
        observation = self._observer.observe()
        for name, report in observation.members.items():
            pid = self._supervisor.members[name].pid
            if report is not None and pid is not None:
                self._heard[name] = (pid, report)
                if report.state == "ready":
                    self._supervisor.ready(name)
        return snapshot.take(
            self._pipe.name,
            self._supervisor.members,
            self._work,
            observation,
            heard=self._heard,
            now=time.monotonic(),
            url=f"http://{self._start.api}/v1",
        )

    def _why_given_up(self, death: Death) -> str:
        """For people: the member's own sentence, or what is known of its end and where to read more."""
        if death.termination is not None and death.termination.final:
            return f"{death.name}: {death.termination}"
        if death.termination is not None:
            said = str(death.termination)
        elif death.status == -signal.SIGKILL:
            said = "the kernel does that where memory runs out"
        else:
            said = death.last_lines[-1] if death.last_lines else "it printed nothing"
        log = f"{death.name}.log"
        read = f"read {self._options.log_dir / log}" if self._options.log_dir else f"pass --log-dir DIR, read DIR/{log}"
        return f"{death.name} was started {TRIES} times and never became ready; the last time {death} ({said}): {read}"

    def _announcement(self, seen: Snapshot) -> Sequence[str]:
        body = json.dumps({"model": self._pipe.served_name, "messages": [{"role": "user", "content": "Say hello."}]})
        key = ' -H "Authorization: Bearer $API_KEY"' if self._start.secrets.api_keys_dir else ""
        return (
            f"{self._pipe.name} is ready at {seen.url}",
            *where_layers_run([seen.members[-1], *seen.members[1:-1]]),
            f"  curl {seen.url}/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}",
        )


def _next(death: Death) -> str:
    if death.restart_in_seconds is None:
        return ""
    return f"; it starts again {f'in {death.restart_in_seconds:.1f} s' if death.restart_in_seconds else 'now'}"
