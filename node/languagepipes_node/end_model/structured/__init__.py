"""Answers that must match a grammar: which tokens may come next. It knows neither HTTP, nor prompts, nor the ring.

    constraint = Constraint.json_schema(schema)   # what is asked for
    grammar = Grammars(codec).compile(constraint) # in a worker thread, kept for the next; raises ConstraintError
    state = grammar.start(stop_token_ids)         # one for each sequence, which belongs to the engine
    state.mask() → sampling → state.accept(token) → state.is_over

`compiler.py` has `Grammars`. The library is llguidance; docs/decisions/0008-structured-output.md says why. It is not
imported here, since whatever reads a request's data imports this package.
"""

from languagepipes_node.end_model.structured.constraint import (
    Constraint,
    ConstraintError,
    Grammar,
    GrammarExhausted,
    GrammarState,
)
from languagepipes_node.end_model.structured.masks import MaskWorkers

__all__ = ["Constraint", "ConstraintError", "Grammar", "GrammarExhausted", "GrammarState", "MaskWorkers"]
