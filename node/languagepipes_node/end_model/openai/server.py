"""Runs the API on uvicorn with uvloop and httptools, in a thread of its own or in the caller's."""

from __future__ import annotations

import logging
import socket
import threading
import traceback
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from languagepipes_node.end_model.openai.connections import BoundedHeadProtocol
from languagepipes_node.health import WAITING_SECONDS, Watchdog
from languagepipes_node.net.addresses import address_family

log = logging.getLogger(__name__)

# A burst of clients waits in the kernel rather than being refused (Linux caps this at net.core.somaxconn).
_BACKLOG = 2048
# Longer than clients and most load balancers keep idle connections (Google's for 600 s, which nobody can change), so
# that it is not the server that closes first: a request that is on its way then is lost.
_KEEP_ALIVE_SECONDS = 620


class _Server(uvicorn.Server):
    """Shows its watchdog ten times a second that the event loop runs. While it shuts down nothing is expected of it:
    then it is `close_seconds` that ends it.
    """

    def __init__(self, config: uvicorn.Config, watchdog: Watchdog) -> None:
        super().__init__(config)
        self._watchdog = watchdog

    async def on_tick(self, counter: int) -> bool:
        self._watchdog.expect("the API's event loop", WAITING_SECONDS)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watchdog.rest()
        await super().shutdown(sockets)


class ApiServer:
    """Binds at once, so that a wrong or taken address is an OSError here and `address` is known from the start.

    listen: `host:port`, an IPv6 host in brackets; port 0 picks a free one. close_seconds: how long clients have after
    `stop` to read what was answered; then their connections are closed. watchdog: notices an event loop that hangs.
    """

    def __init__(self, app: FastAPI, listen: str, *, close_seconds: int = 2, watchdog: Watchdog | None = None) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]") or "0.0.0.0"  # noqa: S104 (a pod serves its network)
        # All addresses means both families, as for every other port of a member.
        both = host == "::" and socket.has_dualstack_ipv6()
        self._socket = socket.create_server(
            (host, int(port)), family=address_family(host), backlog=_BACKLOG, dualstack_ipv6=both
        )
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=BoundedHeadProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=close_seconds,
        )
        self._server = _Server(config, watchdog or Watchdog())
        self._thread: threading.Thread | None = None
        self._close_seconds = close_seconds

    @property
    def address(self) -> str:
        """`host:port` as bound."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def answering(self) -> int:
        """Requests that are being answered now. Any thread."""
        return len(self._server.server_state.tasks)

    def run(self) -> None:
        """Serve until `stop`, or until SIGTERM or SIGINT if this is the main thread."""
        self._server.run(sockets=[self._socket])

    def start(self, *, on_end: Callable[[BaseException | None], None] = lambda error: None) -> None:
        """Serve in a thread. Connections wait in the backlog until it is up.

        on_end: called from that thread when it ends, whether by `stop` or by the error given.
        """

        def serve() -> None:
            failure: BaseException | None = None
            try:
                self.run()
            except BaseException as error:  # uvicorn ends by SystemExit where it cannot start
                failure = error
                # Its message may quote what it choked on, which may be of a request: type and place are enough.
                log.error("%s in\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
            finally:
                on_end(failure)

        self._thread = threading.Thread(target=serve, name="api", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Accept no more, and wait until connections are closed. Safe from any thread."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(self._close_seconds + 2)
        self._socket.close()
