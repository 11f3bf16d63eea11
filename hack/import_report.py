"""Report how the packages hang together, from their import statements alone. Nothing is imported or run.

    python hack/import_report.py                # folders, depth, upward imports, circles, infrastructure, largest files
    python hack/import_report.py --root OTHER   # the same of another checkout, also one from before the folders
    python hack/import_report.py --check        # exit 1 if an import runs upwards or in a circle

What lies above what is declared in pyproject.toml ([tool.importlinter]). A module may import from its own layer and
from layers below.
This script knows nothing of what imports cost when they are executed: that is hack/import_contracts.py.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"languagepipes_api": "api", "languagepipes_operator": "operator", "languagepipes_node": "node"}


def declared_layers(root: Path = ROOT) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The layers of each package, the highest first, as pyproject.toml's import contracts declare them.

    Modules of one layer may import each other here (import-linter judges that; circles are found apart from this). A
    name stands for the module and all below it; the longest name that fits counts.
    """
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {
        container: tuple(tuple(re.findall(r"[\w.]+", layer)) for layer in contract["layers"])
        for contract in settings["contracts"]
        for container in contract.get("containers", ())
    }


LAYERS = declared_layers()

# The operator's infrastructure: what any operator needs, whatever it serves. Old paths stand beside the new ones, so
# that numbers of a checkout from before the folders can be compared.
INFRASTRUCTURE = (
    # entry, kopf, queue and workers, settings, probes, metrics
    ("main.py", "cluster/main.py"),
    ("handlers.py", "cluster/handlers.py"),
    ("controller.py", "cluster/process.py"),
    ("settings.py", "cluster/settings.py"),
    ("health.py", "cluster/health.py"),
    ("metrics.py", "cluster/metrics.py"),
    # the API server's client, watches, queue, Lease
    ("kube/", "cluster/kube.py", "cluster/informer.py", "cluster/kinds.py", "cluster/lease.py", "cluster/workqueue.py"),
    ("cluster/schema.py",),  # now kube/crd_check.py
    # caches of watched objects, nodes that do not answer
    ("observe/caches.py", "cluster/caches.py"),
    ("observe/pipes.py", "cluster/pipes.py"),
    ("observe/node_probe.py", "cluster/reachability.py"),
    # writing, whatever is written
    ("apply/applier.py", "cluster/apply.py"),
    ("apply/drift.py", "cluster/drift.py"),
    ("apply/managed_fields.py", "cluster/managed_fields.py"),
)
# What serves a cluster is the rest of the operator package without the planner, the command line and what both share.
NOT_CLUSTER = (
    ("planning/",),
    ("cli/", "local/", "chat.py", "cli.py", "facts.py", "machine.py", "plan_table.py"),
    ("certificates/authority.py", "certificates.py"),
    ("observe/store_answers.py", "store_answers.py"),
)


@dataclass(frozen=True)
class Module:
    name: str
    path: Path  # relative to the root
    lines: int
    imports: frozenset[str]  # modules of ours, those in functions and under TYPE_CHECKING included


class Tree:
    """All modules of one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = {module.name: module for module in self._read()}

    def _read(self) -> Iterator[Module]:
        files: dict[str, Path] = {}
        for package, folder in PACKAGES.items():
            for path in sorted((self.root / folder / package).rglob("*.py")):
                parts = path.relative_to(self.root / folder).with_suffix("").parts
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        for name, path in files.items():
            text = path.read_text(encoding="utf-8")
            imports = frozenset(_imported(ast.parse(text), name, path.stem == "__init__", files)) - {name}
            yield Module(name, path.relative_to(self.root), len(text.splitlines()), imports)

    @cached_property
    def circles(self) -> list[list[str]]:
        """Groups of modules each of which imports, directly or not, every other one (Tarjan's components)."""
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[list[str]] = []

        def visit(name: str) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            for other in sorted(self.modules[name].imports):
                if other not in index:
                    visit(other)
                    low[name] = min(low[name], low[other])
                elif other in stack:
                    low[name] = min(low[name], index[other])
            if low[name] == index[name]:
                group = stack[stack.index(name) :]
                del stack[stack.index(name) :]
                if len(group) > 1:
                    found.append(sorted(group))

        for name in self.modules:
            if name not in index:
                visit(name)
        return sorted(found)

    def longest(self, package: str) -> list[str]:
        """The longest path of imports inside one package, from the importer to the imported. A circle counts as one."""
        stands_for = {name: circle[0] for circle in self.circles for name in circle}
        below: dict[str, set[str]] = defaultdict(set)
        for module in self.modules.values():
            if module.name.split(".")[0] == package:
                within = {other for other in module.imports if other.split(".")[0] == package}
                below[stands_for.get(module.name, module.name)] |= {stands_for.get(other, other) for other in within}

        @cache
        def path_from(name: str) -> list[str]:
            return [name, *max((path_from(other) for other in sorted(below[name] - {name})), key=len, default=[])]

        return max((path_from(name) for name in sorted(below)), key=len, default=[])

    @property
    def upward(self) -> list[tuple[str, str]]:
        """Imports of a higher layer, and those between the packages that no layer allows."""
        found = []
        for module in self.modules.values():
            package = module.name.split(".")[0]
            for other in module.imports:
                if other.split(".")[0] != package:
                    if other.split(".")[0] != "languagepipes_api":
                        found.append((module.name, other))
                    continue
                mine, its = layer(module.name), layer(other)
                if mine is not None and its is not None and its < mine:
                    found.append((module.name, other))
        return sorted(found)

    @property
    def without_layer(self) -> list[str]:
        """Modules of a package with layers that no layer names; a package's own __init__ needs none."""
        return [
            name
            for name, module in self.modules.items()
            if name.split(".")[0] in LAYERS and "." in name and module.lines and layer(name) is None
        ]

    def folders(self) -> dict[str, tuple[int, int]]:
        counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for module in self.modules.values():
            folder = counted[module.path.parent.as_posix()]
            folder[0] += 1
            folder[1] += module.lines
        return {name: (files, lines) for name, (files, lines) in sorted(counted.items())}

    def infrastructure(self) -> tuple[int, int]:
        """Lines of the operator's infrastructure, and of all that serves a cluster."""
        listed = tuple(path for paths in INFRASTRUCTURE for path in paths)
        apart = tuple(path for paths in NOT_CLUSTER for path in paths)
        base = Path("operator/languagepipes_operator")
        inside = whole = 0
        for module in self.modules.values():
            if not module.path.is_relative_to(base):
                continue
            path = module.path.relative_to(base).as_posix()
            if path.startswith(apart) or path == "__init__.py":
                continue
            whole += module.lines
            if path.startswith(listed):
                inside += module.lines
        return inside, whole


def _imported(tree: ast.Module, name: str, is_package: bool, files: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that the statements name: `from package import module` means the module where there is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in files:
                    yield inner
                elif base in files:
                    yield base


def layer(name: str) -> int | None:
    """The number of the layer, 0 being the highest; None for a module that no layer names."""
    package, _, rest = name.partition(".")
    fitting = [
        (len(prefix), number)
        for number, prefixes in enumerate(LAYERS.get(package, ()))
        for prefix in prefixes
        if rest == prefix or rest.startswith(prefix + ".")
    ]
    return max(fitting)[1] if fitting else None


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def report(tree: Tree) -> str:
    inside, whole = tree.infrastructure()
    fullest = max(tree.folders().items(), key=lambda folder: folder[1])
    numbers: list[tuple[str, object]] = [
        ("files, lines", f"{len(tree.modules)}, {sum(m.lines for m in tree.modules.values()):,}")
    ]
    longest = {package: tree.longest(package) for package in PACKAGES}
    numbers += [(f"depth of imports, {package}", len(path)) for package, path in longest.items()]
    numbers += [
        ("imports that run upwards", len(tree.upward) if not tree.without_layer else "not known: see below"),
        ("circles", len(tree.circles)),
        ("most files in one folder", f"{fullest[1][0]} (`{fullest[0]}`)"),
        ("operator infrastructure", f"{inside:,} of {whole:,} lines"),
    ]
    largest = sorted(tree.modules.values(), key=lambda module: (-module.lines, module.name))[:10]
    parts = [
        table(("", "number"), numbers),
        table(("folder", "files", "lines"), [(f"`{name}`", *counts) for name, counts in tree.folders().items()]),
        table(("largest files", "lines"), [(f"`{module.path.as_posix()}`", module.lines) for module in largest]),
    ]
    for package, path in longest.items():
        shown = " → ".join(name.removeprefix(package + ".") for name in path)
        parts.append(f"Longest path of imports in {package}: {shown}")
    if tree.without_layer:
        parts.append("In no layer: " + ", ".join(tree.without_layer))
    parts += [f"Upwards: {importer} imports {imported}" for importer, imported in tree.upward]
    parts += ["Circle: " + ", ".join(circle) for circle in tree.circles]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Report how the packages hang together.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to read; default: this one")
    parser.add_argument("--check", action="store_true", help="print faults alone; exit 1 if there is one")
    arguments = parser.parse_args()
    tree = Tree(arguments.root)
    if not arguments.check:
        print(report(tree))
        return 0
    faults = [f"{name} is in no layer: add it to LAYERS in hack/import_report.py" for name in tree.without_layer]
    faults += [f"{importer} imports {imported}, which is in a higher layer" for importer, imported in tree.upward]
    faults += ["a circle of imports: " + ", ".join(circle) for circle in tree.circles]
    for fault in faults:
        print(f"BROKEN  {fault}")
    if not faults:
        print(f"KEPT    no import of {len(tree.modules)} modules runs upwards or in a circle")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
