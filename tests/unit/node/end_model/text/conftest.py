from __future__ import annotations

import pytest
from languagepipes_node.end_model.text import TextCodec
from support.tiny_tokenizer import model_files, train_tokenizer


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return TextCodec.load(model_files(train_tokenizer()).__getitem__)
