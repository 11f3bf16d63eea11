"""One YAML document as plain data, with what PyYAML lets through refused: duplicate keys, aliases, endless
nesting.
"""

from __future__ import annotations

from typing import Any

import yaml

from languagepipes_api.resource_errors import Problem, ResourceError

# The API server takes no larger object either (etcd's limit is 1.5 MiB).
MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50


def read_yaml(text: str) -> object:
    """Raises ResourceError, naming line and column, for anything but exactly one plain document."""
    if len(text) > MAX_CHARACTERS:
        raise ResourceError([Problem("", f"the file has {len(text)} characters, more than {MAX_CHARACTERS}")])
    try:
        documents = list(yaml.load_all(text, Loader=_PlainLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ResourceError([Problem("", f"not YAML: {place}{error.problem or error.context}")]) from error
    except yaml.YAMLError as error:
        raise ResourceError([Problem("", f"not YAML: {' '.join(str(error).split())}")]) from error
    except ValueError as error:  # a date such as 2026-99-99, an integer beyond all limits
        raise ResourceError([Problem("", f"not YAML: {error}; write such a value in quotes")]) from error
    documents = [document for document in documents if document is not None]
    if len(documents) != 1:
        raise ResourceError([Problem("", f"the file has {len(documents)} YAML documents; it must have exactly one")])
    return documents[0]


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines of them can stand for gigabytes) and with duplicate keys as
    errors.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._refusal("aliases (*name) are not supported; repeat the value")
        if self._depth >= MAX_DEPTH:
            raise self._refusal(f"nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _refusal(self, problem: str) -> yaml.MarkedYAMLError:
        mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return yaml.composer.ComposerError(None, None, problem, mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands here twice; keep one", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
