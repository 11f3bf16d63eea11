"""`python -m languagepipes_node`: one member of a pipe. The environment says which
(`languagepipes_api.member_settings`).

`python -m languagepipes_node facts --source …` prints a model's facts as JSON and serves nothing;
`python -m languagepipes_node fork-server FD` forks members for `languagepipes up` (`languagepipes_node.fork_server`).
"""

from __future__ import annotations

import logging
import sys

from languagepipes_api.member_settings import PREFIX, MemberSettings
from pydantic import ValidationError


def main(argv: list[str] | None = None) -> int:
    """Run the role that the environment names until SIGTERM. Returns the exit status: 0, or 2 for wrong settings."""
    arguments = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments[:1] == ["facts"]:
        from languagepipes_node.store import inspect

        return inspect.main(arguments[1:])
    if arguments[:1] == ["fork-server"]:
        from languagepipes_node import fork_server

        if (status := fork_server.serve(arguments[1:])) is not None:
            return status
    elif arguments:
        print(
            "languagepipes-node: takes `facts …` or no arguments; the environment names the role",
            file=sys.stderr,
        )
        return 2
    try:
        settings = MemberSettings.from_environment()
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            variable = PREFIX + "_".join(str(part) for part in problem["loc"]).upper()
            problems.append(f"{variable}: {problem['msg']}")
            print(f"languagepipes-node: {problems[-1]}", file=sys.stderr)
        from languagepipes_node import termination

        termination.report("languagepipes-node", ("InvalidSettings", "; ".join(problems)))
        return 2
    return run(settings)


def run(settings: MemberSettings) -> int:
    """Import what this role needs and nothing else, then run it."""
    from languagepipes_node import metrics

    metrics.show_only(settings.role)
    if settings.role == "store":
        from languagepipes_node.store import main as store

        return store.run(settings)

    from languagepipes_node import process

    process.keep_out_of_core_dumps()
    process.limit_threads(settings.threads)  # before torch is imported
    process.import_meanwhile("torch")
    if settings.role == "stage":
        from languagepipes_node.stage import main as stage

        return stage.run(settings)
    from languagepipes_node.end_model import main as end_model

    return end_model.run(settings)


if __name__ == "__main__":
    sys.exit(main())
