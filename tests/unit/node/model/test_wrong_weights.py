"""Weights, batches and sizes that do not fit are refused with the tensor, the numbers and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from languagepipes_api.plan import LayerRange
from languagepipes_node.model.batch import Batch
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.errors import BatchError, ModelError, OutOfMemory, WrongWeights
from languagepipes_node.model.stack import LayerStack
from languagepipes_node.weights.source import TensorInfo, TensorSource
from support.models import ParityModel
from support.replica import CPU, SPLITS, Replica

Q_PROJ = "model.layers.2.self_attn.q_proj.weight"


class Altered:
    """A source with one tensor left out, reported differently, or filled with one value."""

    def __init__(self, source: TensorSource, *, without: str = "", value: float | None = None, **changes: Any) -> None:
        self._source = source
        self._without = without
        self._value = value
        self._changes = changes
        self.read: list[str] = []

    def names(self) -> Iterator[str]:
        return (name for name in self._source.names() if name != self._without)

    def info(self, name: str) -> TensorInfo:
        if name == self._without:
            raise KeyError(name)
        info = self._source.info(name)
        return replace(info, **self._changes) if name == Q_PROJ else info

    def read_into(self, name: str, destination: memoryview) -> None:
        self.read.append(name)
        self._source.read_into(name, destination)

    def read_rows_into(self, name: str, first_row: int, rows: int, destination: memoryview) -> None:
        self.read.append(name)
        self._source.read_rows_into(name, first_row, rows, destination)
        if self._value is not None and name == Q_PROJ:
            destination[:4] = np.float32(self._value).tobytes()

    def file(self, name: str) -> bytes:
        return self._source.file(name)


@pytest.fixture
def llama(model_named: Callable[[str], ParityModel]) -> ParityModel:
    return model_named("llama")


def stack(model: ParityModel, start: int = 1, stop: int = 4, **changes: Any) -> LayerStack:
    sizes: dict[str, Any] = {"dtype": torch.float32, "device": CPU, "block_tokens": 16, "blocks": 8} | changes
    return LayerStack(model.architecture, LayerRange(start, stop), **sizes)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"without": Q_PROJ}, f"tensor {Q_PROJ}: missing from the weights, but config.json calls for it"),
    ({"shape": (72, 71)}, f"tensor {Q_PROJ}: shape [72, 71], but config.json makes it [72, 72]"),
    ({"shape": (72,)}, f"tensor {Q_PROJ}: shape [72], but config.json makes it [72, 72]"),
    ({"dtype": "int8"}, f"tensor {Q_PROJ}: stored as int8; supported are float32, bfloat16, float16"),
    ({"nbytes": 17}, f"tensor {Q_PROJ}: 17 bytes, but shape and dtype make 20736: the file is damaged"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=["missing", "shape", "rank", "dtype", "bytes"])
def test_a_wrong_tensor_is_named_before_any_byte_is_read(
    llama: ParityModel, change: dict[str, Any], message: str
) -> None:
    source = Altered(llama.source, **change)
    with pytest.raises(WrongWeights) as wrong:
        stack(llama).load(source, lambda done: None)
    assert str(wrong.value) == message
    assert source.read == []


def test_a_value_beyond_float16_is_refused(llama: ParityModel) -> None:
    with pytest.raises(WrongWeights, match="beyond float16's range: use bfloat16 or float32"):
        stack(llama, dtype=torch.float16).load(Altered(llama.source, value=1e6), lambda done: None)


@pytest.mark.parametrize("name", ["llama", "llama tied, one kv head", "qwen3_moe", "olmo2 by transformers' layers"])
def test_members_read_their_own_tensors_once_and_report_their_bytes(
    name: str, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    sizes: dict[str, Any] = {"dtype": torch.float32, "device": CPU, "block_tokens": 16, "blocks": 8}
    members = [
        EndLayers(model.architecture, LayerRange(0, 1), LayerRange(5, 6), **sizes),
        stack(model, 1, 3),
        stack(model, 3, 5),
    ]
    every: list[str] = []
    for member in members:
        source, seen = Altered(model.source), [0]
        before = model.source.bytes_read
        member.load(source, seen.append)
        assert seen == sorted(seen)
        assert seen[-1] == member.weight_bytes == model.source.bytes_read - before
        every.extend(source.read)
    assert sorted(every) == sorted(model.source.names())


def test_a_cache_that_cannot_be_allocated_says_how_many_bytes(llama: ParityModel) -> None:
    with pytest.raises(OutOfMemory, match=r"KV cache: \d{15,} bytes \(3 layers, \d+ blocks of 16 tokens\)"):
        stack(llama, blocks=1 << 40).load(llama.source, lambda done: None)


@pytest.mark.parametrize(
    ("layers", "message"),
    [(LayerRange(2, 9), "outside the model's 6 layers"), (LayerRange(4, 2), "outside the model's 6 layers")],
    ids=str,
)
def test_layers_that_the_model_lacks_are_refused(llama: ParityModel, layers: LayerRange, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack(llama, layers.start, layers.stop)


def _batch(**changes: list[Any]) -> Batch:
    values: dict[str, list[Any]] = {
        "counts": [1, 20],
        "starts": [16, 0],
        "run_counts": [1, 2],
        "runs": [[0, 2], [5, 1], [3, 1]],
        "rows": [0],
    } | changes
    return Batch(**{name: np.array(value, dtype=np.int32) for name, value in values.items()})


BAD_BATCHES: list[tuple[dict[str, list[Any]], str]] = [
    ({"counts": [1]}, "1 counts, 2 starts and 2 run counts"),
    ({"counts": [0, 20]}, "a sequence needs a token"),
    ({"starts": [-1, 0]}, "a start of at least 0"),
    ({"run_counts": [1, 0]}, "and a run of blocks"),
    ({"run_counts": [1, 1]}, "2 runs announced, 3 given"),
    ({"runs": [[0, 2], [5, 1], [8, 1]]}, "lies outside the 8 blocks"),
    ({"runs": [[-1, 2], [5, 1], [3, 1]]}, "lies outside the 8 blocks"),
    ({"runs": [[0, 2], [5, 0], [3, 2]]}, "lies outside the 8 blocks"),
    ({"runs": [[0, 3], [5, 1], [3, 1]]}, "sequence 0 holds 17 tokens, which take 2 blocks of 16, but its runs give 3"),
    ({"starts": [2147483647, 0]}, "but its runs give 2"),
    ({"counts": [1, 21]}, "hidden: shape [21, 72], but the batch makes it [22, 72]"),
]


@pytest.mark.parametrize(("change", "message"), BAD_BATCHES, ids=[message for _, message in BAD_BATCHES])
def test_a_batch_that_does_not_fit_touches_nothing(
    llama: ParityModel, change: dict[str, list[Any]], message: str
) -> None:
    layers = stack(llama)
    layers.load(llama.source, lambda done: None)
    assert layers.run(torch.zeros(21, 72), _batch()).shape == (21, 72)
    with pytest.raises(BatchError) as wrong:
        layers.run(torch.zeros(21, 72), _batch(**change))
    assert message in str(wrong.value)


def test_rows_that_returned_are_counted(llama: ParityModel) -> None:
    replica = Replica(llama, SPLITS[2])
    with pytest.raises(BatchError, match="2 rows returned, 1 were wanted"):
        replica.end.back(torch.zeros(2, 72), _batch())


def test_every_error_of_the_model_is_one_kind() -> None:
    assert all(issubclass(kind, ModelError) for kind in (WrongWeights, OutOfMemory, BatchError))
