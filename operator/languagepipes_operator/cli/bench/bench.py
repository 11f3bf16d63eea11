"""`languagepipes bench`: learn what the server takes, run level after level, report."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from languagepipes_operator.cli.bench import plot
from languagepipes_operator.cli.bench.client import BenchError, Client, open_session
from languagepipes_operator.cli.bench.load import LoadGenerator
from languagepipes_operator.cli.bench.options import BenchOptions
from languagepipes_operator.cli.bench.probe import Server, probe
from languagepipes_operator.cli.bench.progress import ProgressDisplay
from languagepipes_operator.cli.bench.prompts import Workload
from languagepipes_operator.cli.bench.records import LevelRecording, RequestRecord
from languagepipes_operator.cli.bench.report import print_report
from languagepipes_operator.cli.bench.summary import LevelSummary, summarise
from languagepipes_operator.cli.openai_server import api_root, without_control_characters

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Measured:
    """interrupted: by Ctrl-C; then the last level is not whole. unmeasured: requests that learned of the server
    and warmed it up.
    """

    server: Server
    summaries: tuple[LevelSummary, ...]
    recordings: tuple[LevelRecording, ...]
    unmeasured: tuple[RequestRecord, ...]
    interrupted: bool


def run(options: BenchOptions) -> int:
    """Measure and report. Returns the exit status: 0; 1 if nothing could be measured or no request completed;
    130 after Ctrl-C, with the report of what was measured.
    """
    errors = Console(stderr=True, highlight=False)
    # A shell that starts this in the background has SIGINT ignored, and Python leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    began = time.time()
    try:
        url = _checked(options)
        measured = asyncio.run(_measure(url, options, seed, ProgressDisplay(errors)))
        if not measured.summaries:
            raise BenchError("stopped before anything was measured")
        _report(measured, options, url=url, seed=seed, began=began)
    except BenchError as error:
        errors.print(f"[bold red]error:[/] {escape(without_control_characters(str(error)))}", soft_wrap=True)
        return 1
    if measured.interrupted:
        return _INTERRUPTED
    return 0 if any(summary.completed for summary in measured.summaries) else 1


def _checked(options: BenchOptions) -> str:
    """The API's address. Raises BenchError for what would be in vain only after the measurement."""
    if options.plot_file is not None and not plot.available():
        raise BenchError(f"--plot: {plot.REMEDY}")
    for option, file in (("--json", options.json_file), ("--plot", options.plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise BenchError(f"{option}: {file}: there is no directory {file.absolute().parent}: make it")
        if file is not None and file.is_dir():
            raise BenchError(f"{option}: {file} is a directory: name a file")
    if options.plot_file is not None and options.plot_file.suffix != ".svg":
        raise BenchError(f"--plot: {options.plot_file}: only SVG is written: use a name that ends with .svg")
    try:
        return api_root(options.url)
    except ValueError as error:
        raise BenchError(str(error)) from error


async def _measure(url: str, options: BenchOptions, seed: int, display: ProgressDisplay) -> Measured:
    async with open_session(options) as http:
        client = Client(url, http)
        server = await probe(client, options, seed)
        workload = Workload(
            seed,
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
            shared_prefix_tokens=options.shared_prefix_tokens,
            scale=server.scale,
        )
        load = LoadGenerator(client, server.form, workload, options, seed)
        summaries: list[LevelSummary] = []
        recordings: list[LevelRecording] = []
        interrupted = False
        for level in options.levels:
            async with display.showing(load):
                recording = await load.run(level)
            if recording.records:
                summaries.append(summarise(level, recording, options.goodput))
                recordings.append(recording)
            if interrupted := recording.interrupted:
                break
        unmeasured = (*server.records, *load.warmup_records)
        return Measured(server, tuple(summaries), tuple(recordings), unmeasured, interrupted)


def _report(measured: Measured, options: BenchOptions, *, url: str, seed: int, began: float) -> None:
    form = measured.server.form
    # A pipe or file has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    title = f"{without_control_characters(form.model)} at {url}, {options.route}"
    notes = [
        f"Prompts of {options.prompt_tokens} tokens"
        + (f" after {options.shared_prefix_tokens} shared ones" if options.shared_prefix_tokens else "")
        + f", answers of {options.output_tokens}; seed {seed}.",
        "Tokens are counted by the server's usage."
        if measured.server.reports_usage
        else "The server reports no usage: a prompt's length is its number of words, and a chunk is one token.",
        *measured.server.notes,
    ]
    if measured.interrupted:
        notes.append("Stopped by Ctrl-C: the last level is not whole.")
    print_report(measured.summaries, notes, console, title=title)
    try:
        if options.json_file is not None:
            document = _document(measured, options, url=url, seed=seed, began=began)
            options.json_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if options.plot_file is not None:
            plot.write_plot(options.plot_file, measured.summaries, measured.recordings, title=title)
    except OSError as error:
        raise BenchError(f"{error.filename}: {error.strerror}") from error


def _document(measured: Measured, options: BenchOptions, *, url: str, seed: int, began: float) -> dict[str, Any]:
    """Never the API key. Times of requests are seconds since the level's start."""
    server = measured.server
    shown = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(options).items()
        if name not in ("api_key", "levels", "url", "model", "seed")
    }
    shown["prompt_tokens"], shown["output_tokens"] = str(options.prompt_tokens), str(options.output_tokens)
    return {
        "version": importlib.metadata.version("languagepipes"),
        "url": url,
        "model": server.form.model,
        "seed": seed,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "interrupted": measured.interrupted,
        "options": shown,
        "request_form": asdict(server.form),
        "scale": asdict(server.scale),
        "reports_usage": server.reports_usage,
        "unmeasured": {
            "requests": len(measured.unmeasured),
            "prompt_tokens": sum(record.prompt_tokens or 0 for record in measured.unmeasured),
            "output_tokens": sum(record.tokens for record in measured.unmeasured),
        },
        "levels": [
            {
                **summary.to_json(),
                "requests": [_request(record, recording.started) for record in recording.records],
            }
            for summary, recording in zip(measured.summaries, measured.recordings, strict=True)
        ],
    }


def _request(record: RequestRecord, level_started: float) -> dict[str, Any]:
    return {
        "number": record.number,
        "started": record.started - level_started,
        "sent": record.sent - level_started,
        "ended": record.ended - level_started,
        "ttft_seconds": record.ttft_seconds,
        "tpot_seconds": record.tpot_seconds,
        "e2el_seconds": record.e2el_seconds,
        "chunks": len(record.chunk_times),
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "asked_output_tokens": record.asked_output_tokens,
        "finish_reason": record.finish_reason,
        "failure": None if record.failure is None else asdict(record.failure),
        "interrupted": record.interrupted,
    }
