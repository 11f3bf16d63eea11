"""What a member does to its own process."""

from __future__ import annotations

import gc

from languagepipes_node import process


class Anything:
    """Looked at by the garbage collector."""


def test_collections_do_not_look_at_what_was_made_before() -> None:
    before = Anything()
    try:
        process.keep_out_of_collections()
        after = Anything()
        looked_at = [found for found in gc.get_objects() if isinstance(found, Anything)]
    finally:
        gc.unfreeze()
    assert looked_at == [after]
    assert any(found is before for found in gc.get_objects())
