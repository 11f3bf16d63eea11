"""Members are forked from one process that imported torch: they are processes like others, and need it no longer."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from languagepipes_operator.cli.up.environment import inherited
from languagepipes_operator.cli.up.fork_server import ForkedProcess, ForkServer
from languagepipes_operator.cli.up.processes import Command, Death, Supervisor
from support.llama_files import write_tiny_llama
from support.up import Up, pipe
from support.waiting import alive, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def running_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    scratch = tmp_path_factory.mktemp("forked")
    write_tiny_llama(scratch / "model")
    with Up(pipe(f"file://{scratch}/model", model={"maxContextLength": 256}, stages={"count": 2}), scratch) as up:
        yield up


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()


def fork_server_of(up: Up) -> int:
    return next(pid for pid in up.pids() if "fork-server" in command_line(pid))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def status_of(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{field}:"))


def ask(up: Up) -> str:
    answer = up.client().completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=4, temperature=0)
    return answer.choices[0].text


def test_a_forked_member_is_a_child_of_up_with_its_own_name_session_and_log(running_up: Up) -> None:
    ready = running_up.ready
    for member in [*ready["stages"], ready["end_model"]]:
        pid = member["pid"]
        assert parent_of(pid) == running_up.process.pid
        assert os.getsid(pid) == pid
        assert status_of(pid, "Name") == member["name"]
        assert command_line(pid) == f"languagepipes-node {member['name']}"
        assert "ready" in (running_up.log_dir / f"{member['name']}.log").read_text()
        for descriptor, file in ((0, os.devnull), (1, str(running_up.log_dir / f"{member['name']}.log"))):
            assert os.readlink(f"/proc/{pid}/fd/{descriptor}") == file
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max core file size")).split()[4:6] == ["0", "0"]


def test_only_the_fork_server_has_one_thread_and_the_store_is_not_its_fork(running_up: Up) -> None:
    server = fork_server_of(running_up)
    assert status_of(server, "Threads") == "1"
    assert "-m languagepipes_node" in command_line(running_up.ready["store"]["pid"])


def test_a_killed_fork_server_takes_no_member_along_and_the_next_restart_works(running_up: Up) -> None:
    answer = ask(running_up)
    before = running_up.ready
    server = fork_server_of(running_up)

    os.kill(server, signal.SIGKILL)
    eventually(lambda: "the fork server is lost (it ended with status -9)" in running_up.output.read_text())

    assert ask(running_up) == answer
    assert running_up.ready == before

    os.kill(before["stages"][0]["pid"], signal.SIGKILL)
    after = running_up.wait_ready(before=before)

    assert after["stages"][1] == before["stages"][1]
    assert after["end_model"] == before["end_model"]
    assert command_line(after["stages"][0]["pid"]).endswith("-m languagepipes_node")
    assert ask(running_up) == answer


def test_kill_9_of_up_leaves_no_process(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    up = Up(pipe(f"file://{tmp_path}/model", model={"maxContextLength": 256}, stages={"count": 1}), tmp_path)
    up.start()
    try:
        up.wait_ready()
        pids = up.pids()
        assert len(pids) >= 6  # up, its watchdog, the fork server, store, stage, End Model
        up.process.kill()
        up.process.wait()
        eventually(lambda: not any(alive(pid) for pid in pids))
    finally:
        up.stop()


def test_kill_9_of_up_while_it_starts_ends_the_fork_server_too(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    up = Up(pipe(f"file://{tmp_path}/model", stages={"count": 1}), tmp_path)
    up.start()
    try:
        pids = eventually(lambda: found if len(found := up.pids()) >= 2 else None)
        up.process.kill()
        up.process.wait()
        eventually(lambda: not any(alive(pid) for pid in pids))
    finally:
        up.stop()


def test_a_fork_server_that_is_killed_while_it_imports_is_done_without(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    up = Up(pipe(f"file://{tmp_path}/model", model={"maxContextLength": 256}, stages={"count": 1}), tmp_path)
    up.start()
    try:
        os.kill(eventually(lambda: fork_server_of(up), not_yet=(StopIteration, OSError)), signal.SIGKILL)
        ready = up.wait_ready()
        assert "the fork server is lost" in up.output.read_text()
        assert command_line(ready["end_model"]["pid"]).endswith("-m languagepipes_node")
        assert ask(up)
    finally:
        assert up.stop() == 0


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with ForkServer(inherited() | {"CUDA_VISIBLE_DEVICES": ""}) as server:
        eventually(server.settled, seconds=60)
        assert not server.lost
        yield server


@pytest.fixture
def supervisor(tmp_path: Path, fork_server: ForkServer) -> Iterator[Supervisor]:
    directory = tmp_path / "private"
    directory.mkdir(mode=0o700)
    with Supervisor(directory, fork_server=fork_server) as supervisor:
        yield supervisor


def node(tmp_path: Path, name: str, **settings: str) -> Command:
    """A member that is told `settings` alone."""
    termination_log = tmp_path / "termination" / name
    told = {f"LANGUAGEPIPES_{key.upper()}": value for key, value in settings.items()}
    return Command(
        name=name,
        argv=(sys.executable, "-P", "-m", "languagepipes_node"),
        environment={**inherited(), **told, "LANGUAGEPIPES_TERMINATION_LOG": str(termination_log)},
        directory=tmp_path,
        log=tmp_path / "logs" / f"{name}.log",
        termination_log=termination_log,
        forks=True,
    )


def deaths_of(supervisor: Supervisor, count: int) -> list[Death]:
    deaths: list[Death] = []
    eventually(lambda: deaths.extend(supervisor.tend()) or len(deaths) >= count)
    return deaths


def test_a_forked_member_that_cannot_start_says_why_as_one_that_was_started(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start([node(tmp_path, "stage-1", role="nobody")])
    assert isinstance(supervisor.members["stage-1"].process, ForkedProcess)

    death = deaths_of(supervisor, 1)[0]

    assert death.status == 2
    assert death.last_lines
    assert "LANGUAGEPIPES_ROLE" in "\n".join(death.last_lines)
    assert death.termination is not None
    assert death.termination.code == "InvalidSettings"
    assert death.restart_in_seconds is None


def test_the_end_of_one_forked_member_is_not_taken_for_anothers(
    supervisor: Supervisor, fork_server: ForkServer, tmp_path: Path
) -> None:
    supervisor.start([node(tmp_path, "stage-1", role="nobody"), node(tmp_path, "stage-2", role="nobody")])

    deaths = deaths_of(supervisor, 2)

    assert {death.name for death in deaths} == {"stage-1", "stage-2"}
    assert not fork_server.lost
