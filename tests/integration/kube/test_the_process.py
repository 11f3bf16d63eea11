"""The operator's process against an API server that is played: how it starts, what ends it, with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import yaml
from aiohttp import ClientSession, web
from languagepipes_api.names import API_GROUP, API_VERSION, KIND
from support.paths import CRD

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Scene = Callable[["Process"], Awaitable[None]]
PIPES = f"/apis/{API_GROUP}/{API_VERSION}/namespaces/n/languagepipes"


class Process:
    """One `languagepipes-operator`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log = ""
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.log += line.decode()

    async def wait_for(self, pattern: str) -> str:
        while (found := re.search(pattern, self.log)) is None:
            assert self._process.returncode is None, self.log
            await asyncio.sleep(0.05)
        return found[1]

    async def readyz(self) -> str:
        address = await self.wait_for(r"telemetry on (\S+)")
        async with ClientSession() as http, http.get(f"http://{address}/readyz") as answer:
            return await answer.text()

    async def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return await self.exit()

    async def exit(self) -> int:
        code = await asyncio.wait_for(self._process.wait(), 20)
        await self._reading
        return code

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


def run(answer: Answer, scene: Scene, folder: Path, *, listen: str = "127.0.0.1:0") -> None:
    """Start an operator whose every request `answer` answers, and let `scene` watch it."""

    async def play() -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        kubeconfig = folder / "kubeconfig"
        cluster = {"server": "http://{}:{}".format(*runner.addresses[0][:2])}
        context = {"cluster": "c", "user": "u"}
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                    "contexts": [{"name": "x", "context": context}],
                    "current-context": "x",
                }
            )
        )
        settings = {"NODE_IMAGE": "node", "NAMESPACES": "n", "POD_NAMESPACE": "n", "IDENTITY": "me", "LISTEN": listen}
        environment = {f"LANGUAGEPIPES_OPERATOR_{name}": value for name, value in settings.items()}
        process = Process(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "languagepipes_operator.main"),
                env={**os.environ, **environment, "KUBECONFIG": str(kubeconfig)},
                stderr=asyncio.subprocess.PIPE,
            )
        )
        try:
            await asyncio.wait_for(scene(process), 60)
        finally:
            process.kill()
            await runner.cleanup()

    asyncio.run(play())


async def _no_crd(_: web.Request) -> web.StreamResponse:
    return web.json_response({"kind": "Status", "code": 404}, status=404)


def _cluster(pipes: Answer) -> Answer:
    """A cluster with nothing in it whose LanguagePipes `pipes` answers, for kopf and everybody else."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/openapi/"):
            schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            kind = {"group": API_GROUP, "version": API_VERSION, "kind": KIND}
            served = {**schema, "x-kubernetes-group-version-kind": [kind]}
            return web.json_response({"components": {"schemas": {"pipe": served}}})
        if request.path == PIPES and "fieldSelector" not in request.query:
            return await pipes(request)
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        if request.path == "/apis":
            version = {"groupVersion": f"{API_GROUP}/{API_VERSION}", "version": API_VERSION}
            return web.json_response(
                {"groups": [{"name": API_GROUP, "versions": [version], "preferredVersion": version}]}
            )
        if request.path == f"/apis/{API_GROUP}/{API_VERSION}":
            return _resources("languagepipes", KIND)
        if request.path == "/api/v1":
            return _resources("namespaces", "Namespace")
        if request.query.get("watch"):
            await asyncio.sleep(30)
        if "/leases" in request.path and request.method != "GET":
            return web.json_response(await request.json())
        if "/leases/" in request.path:
            return await _no_crd(request)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    return answer


def _resources(plural: str, kind: str) -> web.Response:
    verbs = ["list", "watch", "patch"]
    resource = {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True, "verbs": verbs}
    return web.json_response({"resources": [resource]})


def test_a_stop_before_there_is_a_crd_is_clean_and_prompt(tmp_path: Path) -> None:
    async def scene(process: Process) -> None:
        await process.wait_for(r"(the API server has no LanguagePipe)")
        assert "install the CRD of this version" in await process.readyz()
        began = asyncio.get_running_loop().time()
        assert await process.stop() == 0
        assert asyncio.get_running_loop().time() - began < 4
        assert "Traceback" not in process.log

    run(_no_crd, scene, tmp_path)


def test_a_port_that_is_taken_ends_the_process_with_2_and_one_sentence(tmp_path: Path) -> None:
    async def scene(process: Process) -> None:
        assert await process.exit() == 2
        assert process.log.splitlines()[-1].startswith(f"cannot listen on {listen}: ")
        assert "Traceback" not in process.log

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = "{}:{}".format(*taken.getsockname())
        run(_no_crd, scene, tmp_path, listen=listen)


def test_a_token_that_is_refused_for_a_while_does_not_end_the_process_nor_flood_the_api_server(tmp_path: Path) -> None:
    refused = 0
    accepted = asyncio.Event()

    async def pipes(request: web.Request) -> web.StreamResponse:
        nonlocal refused
        assert request.headers["Authorization"] == "Bearer t"
        if refused < 2:
            refused += 1
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        accepted.set()
        if request.query.get("watch"):
            await asyncio.sleep(30)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    async def scene(process: Process) -> None:
        await process.wait_for(r"(leading as me)")
        began = asyncio.get_running_loop().time()
        await accepted.wait()
        assert asyncio.get_running_loop().time() - began > 4  # two logins, seconds apart
        assert await process.stop() == 0

    run(_cluster(pipes), scene, tmp_path)


def test_an_etcd_that_was_restored_ends_the_process_with_1_and_one_sentence(tmp_path: Path) -> None:
    """Whoever restarts it has everything read anew, kopf's watch of the pipes among it."""
    watched = False

    async def pipes(request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            await asyncio.sleep(30)
        return web.json_response({"metadata": {"resourceVersion": "100"}, "items": []})

    cluster = _cluster(pipes)

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal watched
        if request.path.endswith("/configmaps"):
            if request.query.get("watch"):
                watched = True
                return web.Response()
            return web.json_response({"metadata": {"resourceVersion": "7" if watched else "100"}, "items": []})
        return await cluster(request)

    async def scene(process: Process) -> None:
        assert await process.exit() == 1
        assert "resource version 7, and had been at 100" in process.log
        assert "Traceback" not in process.log

    run(answer, scene, tmp_path)


def test_a_crd_that_is_deleted_under_a_running_operator_ends_the_process_with_1(tmp_path: Path) -> None:
    """Whoever restarts it finds it waiting for the CRD."""

    async def scene(process: Process) -> None:
        assert await process.exit() == 1
        assert "APINotFoundError" in process.log

    run(_cluster(_no_crd), scene, tmp_path)
