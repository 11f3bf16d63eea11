"""A real HTTP server that plays the API server, for answers that a real one gives too seldom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from kubernetes.aio.client import Configuration
from languagepipes_operator.kube.client import Kube, connect
from languagepipes_operator.metrics import Metrics

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def play(answer: Answer, scene: Callable[[Kube, Metrics], Awaitable[None]]) -> Metrics:
    """Let `scene` use a client whose every request `answer` answers. Returns the client's metrics."""

    async def run() -> Metrics:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        metrics = Metrics()
        host, port = runner.addresses[0][:2]
        try:
            async with connect(metrics, Configuration(host=f"http://{host}:{port}")) as kube:
                await scene(kube, metrics)
        finally:
            await runner.cleanup()
        return metrics

    return asyncio.run(run())
