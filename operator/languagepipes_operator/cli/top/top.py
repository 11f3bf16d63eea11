"""`languagepipes top`: a live view of the pipes of a cluster, as the kubeconfig's user may see them."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from languagepipes_operator.cli.top.cluster import Cluster, ClusterError
from languagepipes_operator.cli.top.options import TopOptions
from languagepipes_operator.cli.top.readings import Change, Reading
from languagepipes_operator.cli.top.view import detail, overview

# Where stdout is no terminal its lines are not folded at 80.
_PLAIN_WIDTH = 200


def run(options: TopOptions) -> int:
    """Returns 0, or 1 with the reason on stderr. Raises KeyboardInterrupt."""
    try:
        asyncio.run(_show(options))
    except ClusterError as error:
        print(f"languagepipes top: {error}", file=sys.stderr)
        return 1
    return 0


async def _show(options: TopOptions) -> None:
    console = Console()
    live = console.is_terminal and not console.is_dumb_terminal and not options.once
    async with Cluster(options.context) as cluster:
        if not live:
            # Rates need two readings.
            pictures = [picture async for picture in _pictures(cluster, options, count=2)]
            Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH).print(pictures[-1])
            return
        with Live(console=console, auto_refresh=False, screen=True) as screen:
            async for picture in _pictures(cluster, options):
                screen.update(picture, refresh=True)


async def _pictures(cluster: Cluster, options: TopOptions, count: int | None = None) -> AsyncIterator[RenderableType]:
    """One each interval: so many, or without end, and then an API server that is away for a while ends nothing. Raises
    ClusterError if the first cannot be made.
    """
    namespace = None if options.all_namespaces else options.namespace or cluster.namespace()
    before, last = await _picture(cluster, options.pipe, namespace, None)
    yield last
    for _ in itertools.count() if count is None else range(1, count):
        await asyncio.sleep(options.interval_seconds)
        try:
            before, last = await _picture(cluster, options.pipe, namespace, before)
            yield last
        except ClusterError as error:
            if count is not None:
                raise
            yield Group(Text(f"{error}; what is below is of before", style="bold red"), last)


async def _picture(
    cluster: Cluster, name: str | None, namespace: str | None, before: Reading | None
) -> tuple[Reading, RenderableType]:
    if name is not None and namespace is not None:
        pipes = [await cluster.pipe(namespace, name)]
    else:
        pipes = [pipe for pipe in await cluster.pipes(namespace) if name in (None, pipe["metadata"]["name"])]
    if not pipes:
        where = "the cluster" if namespace is None else f"namespace {namespace}"
        raise ClusterError(f"there is no LanguagePipe{'' if name is None else f' {name}'} in {where}")
    if len(pipes) > 1:
        reading = await cluster.read(pipes, roles=["end-model"])
        return reading, overview(reading, Change.since(before))
    reading = await cluster.read(pipes)
    return reading, detail(pipes[0], reading.of(pipes[0]), Change.since(before))
