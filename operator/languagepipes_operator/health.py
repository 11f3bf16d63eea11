"""/metrics, /healthz and /readyz of the operator process. Liveness depends on nothing but this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from languagepipes_operator.metrics import Metrics


class CannotListen(Exception):
    """The address is taken, or is none of this machine."""


@asynccontextmanager
async def serve(
    listen: str, metrics: Metrics, *, why_not_ready: Callable[[], str | None], before_metrics: Callable[[], None]
) -> AsyncIterator[str]:
    """why_not_ready: None when ready. Gives the address that it listens on. Raises CannotListen."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        reason = why_not_ready()
        return web.Response(text="ok\n") if reason is None else web.Response(text=reason + "\n", status=503)

    async def show(_: web.Request) -> web.Response:
        before_metrics()
        page = await asyncio.to_thread(metrics.text)  # long where there are many pipes
        return web.Response(body=page, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        host, _, port = listen.rpartition(":")
        site = web.TCPSite(runner, host.strip("[]"), int(port), shutdown_timeout=1)
        try:
            await site.start()
        except OSError as error:
            raise CannotListen(f"cannot listen on {listen}: {error}") from error
        yield "{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
