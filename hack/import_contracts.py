"""The import contract that a static checker cannot hold: what each package pulls in when it is imported.

`languagepipes_api` brings neither torch nor kopf nor a Kubernetes client; the operator no torch; the store none either.
"""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "kopf", "kubernetes", "lightkube", "kr8s")
CONTRACTS = {
    "languagepipes_api.spec, languagepipes_api.plan, languagepipes_api.facts, languagepipes_api.member_settings": HEAVY,
    "languagepipes_operator.cli.main, languagepipes_operator.planning.plan, languagepipes_operator.cli.up.up": (
        "torch",
        "transformers",
        "languagepipes_node",
    ),
    "languagepipes_node.store.main, languagepipes_node.wire.stage_communicator, "
    "languagepipes_node.wire.end_model_communicator": (
        "torch",
        "transformers",
        "languagepipes_operator",
    ),
    "languagepipes_node.stage.main, languagepipes_node.end_model.main": ("torch", "transformers"),
    "languagepipes_node.model.stack, languagepipes_node.model.end": (
        "transformers",
        "languagepipes_operator",
    ),
}


def main() -> int:
    broken = 0
    for modules, forbidden in CONTRACTS.items():
        program = f"import sys, {modules}\nprint(*[name for name in {forbidden!r} if name in sys.modules])"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        found = result.stdout.split()
        if result.returncode or found:
            broken += 1
            print(f"BROKEN  {modules}: imports {', '.join(found) or result.stderr.strip().splitlines()[-1]}")
        else:
            print(f"KEPT    {modules}: none of {', '.join(forbidden)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
