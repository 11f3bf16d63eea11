"""Members are real processes here: they die, hang and refuse to die, and nothing of them is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from languagepipes_api.termination import Termination
from languagepipes_operator.cli.up.processes import Command, Death, Supervisor
from support.waiting import alive, eventually

pytestmark = pytest.mark.timeout(60)

SLEEPS = "import time; print('up', flush=True); time.sleep(600)"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPS
ENDS_POLITELY = """
import signal, sys, time
def end(*_):
    print('said goodbye', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print('up', flush=True)
time.sleep(600)
"""
FAILS = "import sys; print('the reason', file=sys.stderr); sys.exit(3)"
HAS_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(600)'])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def private(tmp_path: Path) -> Path:
    directory = tmp_path / "private"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def supervisor(private: Path) -> Iterator[Supervisor]:
    with Supervisor(private) as supervisor:
        yield supervisor


def wrote(command: Command, text: str) -> Callable[[], bool]:
    return lambda: command.log.exists() and text in command.log.read_text()


def pid_of(supervisor: Supervisor, name: str) -> int:
    pid = supervisor.members[name].pid
    assert pid is not None
    return pid


def test_a_member_that_is_killed_is_started_again_at_once(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    supervisor.start([program("stage", SLEEPS)])
    first = pid_of(supervisor, "stage")
    os.kill(first, signal.SIGKILL)

    deaths = []
    eventually(lambda: deaths.extend(supervisor.tend()) or deaths)

    assert str(deaths[0]).startswith("killed by SIGKILL after")
    assert pid_of(supervisor, "stage") != first
    assert supervisor.members["stage"].restarts == 1


def test_a_member_that_keeps_dying_waits_longer_each_time_and_its_last_lines_are_kept(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    supervisor.start([program("stage", FAILS)])

    deaths = []
    eventually(lambda: deaths.extend(supervisor.tend()) or len(deaths) >= 3)

    assert [death.restart_in_seconds for death in deaths[:3]] == [0.0, 0.5, 1.0]
    assert deaths[2].last_lines == ("the reason",)
    assert "ended with status 3" in str(deaths[2])
    assert 0.0 < (supervisor.next_restart_seconds() or 0.0) <= 1.0


SAYS_WHY = """
import os, sys
with open(os.environ['LANGUAGEPIPES_TERMINATION_LOG'], 'r+') as log:
    log.truncate()
    log.write('WrongWeights: model.norm.weight is missing: publish it')
sys.exit(1)
"""


def test_a_member_that_says_that_no_restart_helps_is_not_started_again(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    supervisor.start([program("stage", SAYS_WHY)])

    deaths: list[Death] = []
    eventually(lambda: deaths.extend(supervisor.tend()) or deaths)

    assert deaths[0].termination == Termination("WrongWeights", "model.norm.weight is missing: publish it")
    assert deaths[0].restart_in_seconds is None
    assert supervisor.given_up() is deaths[0]
    assert supervisor.tend() == []
    assert supervisor.members["stage"].process is None
    assert supervisor.next_restart_seconds() is None


def test_what_an_earlier_life_said_is_not_taken_for_what_ended_this_one(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    command = program("stage", SLEEPS)
    supervisor.start([command])
    eventually(wrote(command, "up"))
    assert command.termination_log is not None
    command.termination_log.write_text("WrongWeights: said by the first life")
    supervisor.ready("stage")
    first = pid_of(supervisor, "stage")
    os.kill(first, signal.SIGKILL)
    deaths: list[Death] = []
    eventually(lambda: deaths.extend(supervisor.tend()) or deaths)
    assert deaths[0].restart_in_seconds == 0.0  # it was ready

    os.kill(pid_of(supervisor, "stage"), signal.SIGKILL)
    eventually(lambda: deaths.extend(supervisor.tend()) or len(deaths) == 2)

    assert deaths[1].termination is None
    assert supervisor.given_up() is None


def test_members_end_in_their_own_way_when_asked_to_stop(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    command = program("stage", ENDS_POLITELY)
    supervisor.start([command])
    eventually(wrote(command, "up"))

    supervisor.stop()

    assert "said goodbye" in command.log.read_text()


def test_a_member_that_ignores_sigterm_is_killed_after_the_grace_period(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    command = program("stage", IGNORES_SIGTERM)
    supervisor.start([command])
    eventually(wrote(command, "up"))
    pid = pid_of(supervisor, "stage")

    started = time.monotonic()
    supervisor.stop(grace_seconds=0.5)

    assert 0.5 <= time.monotonic() - started < 3.0
    assert not alive(pid)


def test_a_second_request_to_stop_ends_the_grace_period(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    command = program("stage", IGNORES_SIGTERM)
    supervisor.start([command])
    eventually(wrote(command, "up"))

    started = time.monotonic()
    supervisor.stop(hurry=lambda: True)

    assert time.monotonic() - started < 1.0


def test_a_member_that_is_stopped_by_sigstop_still_goes_away(
    supervisor: Supervisor, program: Callable[..., Command]
) -> None:
    command = program("stage", SLEEPS)
    supervisor.start([command])
    eventually(wrote(command, "up"))
    pid = pid_of(supervisor, "stage")
    os.kill(pid, signal.SIGSTOP)

    started = time.monotonic()
    supervisor.stop()

    assert time.monotonic() - started < 2.0
    assert not alive(pid)


def test_processes_that_a_member_started_go_with_it(supervisor: Supervisor, program: Callable[..., Command]) -> None:
    command = program("stage", HAS_A_CHILD)
    supervisor.start([command])
    eventually(wrote(command, "\n"))
    grandchild = int(command.log.read_text())

    supervisor.stop()

    eventually(lambda: not alive(grandchild))


def test_an_error_inside_the_supervisor_leaves_no_process_and_no_directory(
    private: Path, program: Callable[..., Command]
) -> None:
    with contextlib.suppress(ZeroDivisionError), Supervisor(private) as supervisor:
        supervisor.start([program("stage", SLEEPS), program("store", IGNORES_SIGTERM)])
        pids = [pid_of(supervisor, "stage"), pid_of(supervisor, "store")]
        _ = 1 / 0

    assert not any(alive(pid) for pid in pids)
    assert not private.exists()


PARENT = """
import os, sys, time
from pathlib import Path
from languagepipes_operator.cli.up.processes import Command, Supervisor
directory = Path(sys.argv[1])
with Supervisor(directory) as supervisor:
    commands = [
        Command(name, (sys.executable, '-c', source), dict(os.environ), directory, directory / f'{name}.log')
        for name, source in zip(('stage', 'store', 'family'), sys.argv[2:], strict=True)
    ]
    supervisor.start(commands)
    while not all(command.log.exists() and command.log.read_text() for command in commands):
        time.sleep(0.02)
    print(*(member.pid for member in supervisor.members.values()), commands[2].log.read_text(), flush=True)
    time.sleep(600)
"""


def test_kill_9_of_the_parent_ends_members_and_their_children_and_removes_the_directory(
    private: Path,
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(private), SLEEPS, IGNORES_SIGTERM, HAS_A_CHILD],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 4
    assert all(alive(pid) for pid in pids)

    parent.kill()
    parent.wait()

    eventually(lambda: not any(alive(pid) for pid in pids))
    eventually(lambda: not private.exists())


def test_a_member_whose_parent_is_gone_before_it_starts_never_starts(tmp_path: Path) -> None:
    from languagepipes_operator.cli.up import parent_death as parent_death

    touched = tmp_path / "touched"
    source = f"open({str(touched)!r}, 'w')"
    stranger = 2**22 + 1  # no process has this number
    result = subprocess.run(
        [sys.executable, parent_death.__file__, str(stranger), sys.executable, "-c", source], timeout=20, check=False
    )

    assert result.returncode == parent_death.PARENT_GONE
    assert not touched.exists()
