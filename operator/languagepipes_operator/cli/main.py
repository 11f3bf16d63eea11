"""`languagepipes`: plan a pipe, run it on this machine, talk to it, measure it, watch those of a cluster. Each command
imports what it needs, and no more.

Exit statuses: 0; 1 if the pipe is refused or fails, with the reason on stderr; 2 for wrong arguments; 130
after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from languagepipes_operator.cli.bench import options as bench_options
from languagepipes_operator.cli.top import options as top_options
from languagepipes_operator.cli.up import options as up_options

if TYPE_CHECKING:
    from languagepipes_api.spec import LanguagePipe


class CommandError(Exception):
    """The message that is printed before the command ends with status 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except CommandError as error:
        print(f"languagepipes {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) left; Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="languagepipes",
        description="Serve one language model from many machines: layer ranges on a ring, the OpenAI API in front.",
    )
    parser.add_argument(
        "--version", action="version", version=f"languagepipes {importlib.metadata.version('languagepipes')}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    plan = commands.add_parser("plan", help="show which member gets which layers, and why; start nothing")
    plan.add_argument("file", metavar="FILE", type=Path, help="the LanguagePipe, as YAML")
    plan.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
    plan.add_argument(
        "--for",
        dest="place",
        choices=("here", "cluster"),
        default="here",
        help="here: as `up` would run it on this machine (default); cluster: as the API server and the "
        "operator see "
        "it, with no more known of the nodes than the spec says",
    )
    plan.add_argument("--cache-dir", metavar="DIR", type=Path, help="reuse and keep the model's small files here")
    plan.add_argument("--secrets-dir", metavar="DIR", type=Path, help="stands in for Secrets: DIR/<secret name>/<key>")
    plan.set_defaults(run=_plan)

    up = commands.add_parser("up", help="run a pipe on this machine until Ctrl-C")
    up_options.add_arguments(up)
    up.set_defaults(run=_up)

    chat = commands.add_parser("chat", help="talk to a pipe, or to any server with the OpenAI API")
    chat.add_argument("message", nargs="?", help="one question, answered once; without it, talk until end of input")
    chat.add_argument("--url", default="http://127.0.0.1:8000", help="default: http://127.0.0.1:8000")
    chat.add_argument("--model", help="default: the first that the server lists")
    chat.add_argument("--api-key", help="default: the environment's OPENAI_API_KEY")
    chat.add_argument("--system", metavar="TEXT", help="a system message")
    chat.add_argument("--max-tokens", type=int, metavar="N", help="default: the server's")
    chat.add_argument("--temperature", type=float, metavar="T", help="default: the server's")
    chat.set_defaults(run=_chat)

    bench = commands.add_parser("bench", help="measure a pipe, or any server with the OpenAI API, under load")
    bench_options.add_arguments(bench)
    bench.set_defaults(run=_bench)

    top = commands.add_parser("top", help="watch the pipes of a cluster: rings, members, tokens, queues")
    top_options.add_arguments(top)
    top.set_defaults(run=_top)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    from languagepipes_operator.cli.machine import this_machine
    from languagepipes_operator.cli.model_facts import FactsError, read_facts
    from languagepipes_operator.planning import PlanError, plan

    here = arguments.place == "here"
    pipe = read_pipe(arguments.file, local=here)
    if here:
        pipe = _without_cluster_only(pipe, arguments.command)
    if pipe.spec.model.source.startswith("pvc://"):
        raise CommandError(
            f"spec.model.source: {pipe.spec.model.source!r} can be read only inside the cluster that has the claim"
        )
    try:
        facts = read_facts(
            pipe.spec.model,
            cache_dir=arguments.cache_dir,
            token_file=_token_file(pipe, arguments.secrets_dir),
        )
        planned = plan(pipe.spec, facts, (this_machine(),) if here else ())
    except (FactsError, PlanError) as error:
        raise CommandError(f"{error.reason}: {error.message}{_hint(error, here=here)}") from error
    if arguments.output == "json":
        print(json.dumps(planned.to_json(), indent=2))
        return 0

    from rich.console import Console

    from languagepipes_operator.cli.plan_table import print_plan

    # A pipe or file has no width of its own; lines folded at 80 would be hard to read and to grep.
    console = Console(width=None if sys.stdout.isatty() else 200)
    print_plan(planned, console, title=f"{pipe.name}: {pipe.spec.model.source}")
    return 0


def _hint(error: Exception, *, here: bool) -> str:
    """A pipe for a cluster often does not fit the machine on which it is planned."""
    from languagepipes_operator.planning import PlanError

    about_this_machine = ("NoSuchDevice", "InsufficientMemory", "StageTooLarge")
    if here and isinstance(error, PlanError) and error.reason in about_this_machine:
        return "\n  (that is about this machine; `languagepipes plan --for cluster` knows nothing of nodes)"
    return ""


def _up(arguments: argparse.Namespace) -> int:
    pipe = read_pipe(arguments.file, local=True)
    if pipe.spec.replicas > 1:
        raise CommandError(
            f"spec.replicas: {pipe.spec.replicas} is more than 1: on one machine several rings would share "
            f"the same "
            "cores; set it to 1, or use a cluster"
        )
    pipe = _without_cluster_only(pipe, arguments.command)
    from languagepipes_operator.cli.up.environment import inherited
    from languagepipes_operator.cli.up.fork_server import ForkServer

    # First of all, since it takes longest: its imports go on beside this process's, its checks and its plan.
    with ForkServer(inherited() | {"CUDA_VISIBLE_DEVICES": ""}) as fork_server:
        from languagepipes_operator.cli.up import up

        return up.run(pipe, up_options.UpOptions.from_arguments(arguments), fork_server)


def _chat(arguments: argparse.Namespace) -> int:
    from languagepipes_operator.cli import chat

    return chat.run(
        chat.ChatOptions(
            url=arguments.url,
            model=arguments.model,
            api_key=arguments.api_key,
            message=arguments.message,
            system=arguments.system,
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
        )
    )


def _bench(arguments: argparse.Namespace) -> int:
    from languagepipes_operator.cli.bench import bench

    return bench.run(bench_options.BenchOptions.from_arguments(arguments))


def _top(arguments: argparse.Namespace) -> int:
    from languagepipes_operator.cli.top import top

    return top.run(top_options.TopOptions.from_arguments(arguments))


def read_pipe(file: Path, *, local: bool) -> LanguagePipe:
    """The resource in `file`, a relative file:// source made absolute, seen from the file. Raises
    CommandError.
    """
    from languagepipes_api.resource_errors import ResourceError
    from languagepipes_api.spec import load_pipe

    try:
        pipe = load_pipe(file.read_text(encoding="utf-8"), local=local)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{file}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ResourceError as error:
        raise CommandError(f"{file} is refused:\n" + "\n".join(f"  {problem}" for problem in error.problems)) from error
    return pipe.seen_from(file.absolute().parent)


def _without_cluster_only(pipe: LanguagePipe, command: str) -> LanguagePipe:
    """The pipe as this machine can run it. Says in one line what of it is ignored, since only a cluster has it."""
    if ignored := pipe.spec.cluster_only:
        fields = ", ".join(f"spec.{field}" for field in ignored)
        print(f"languagepipes {command}: ignored on this machine, for a cluster alone: {fields}", file=sys.stderr)
    return pipe.model_copy(update={"spec": pipe.spec.without_cluster_only()})


def _token_file(pipe: LanguagePipe, secrets_dir: Path | None) -> Path | None:
    reference = pipe.spec.model.token_secret_ref
    if reference is None:
        return None
    if secrets_dir is None:
        raise CommandError(
            f"spec.model.tokenSecretRef names the Secret {reference.name}, which only a cluster has: put the "
            f"token "
            f"into DIR/{reference.name}/{reference.key} and pass --secrets-dir DIR"
        )
    file = secrets_dir / reference.name / reference.key
    if not file.is_file():
        raise CommandError(f"spec.model.tokenSecretRef: there is no file {file}: write the token into it")
    return file
