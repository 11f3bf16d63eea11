"""The arithmetic that a member chooses is measured once a kind of machine and of weights, and remembered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from languagepipes_api.plan import LayerRange
from languagepipes_api.store_answers import ArithmeticChoice, ArithmeticChoices
from languagepipes_node.model import choices
from languagepipes_node.model.end import EndLayers
from languagepipes_node.model.linear import WHOLE, Arithmetic, Compute
from languagepipes_node.model.stack import LayerStack
from support.models import ParityModel

CPU = torch.device("cpu")
SIZES = {"device": CPU, "block_tokens": 16, "blocks": 8}


class RememberingStore:
    """`Memory` without a store: the first choices that are told stand."""

    def __init__(self) -> None:
        self.known: dict[str, ArithmeticChoices] = {}

    def arithmetic(self, key: str) -> ArithmeticChoices | None:
        return self.known.get(key)

    def remember_arithmetic(self, key: str, choices: ArithmeticChoices) -> ArithmeticChoices | None:
        return self.known.setdefault(key, choices)


@pytest.fixture
def llama(model_named: Callable[[str], ParityModel]) -> ParityModel:
    return model_named("llama")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each measurement."""
    lines: list[str] = []
    real = choices.measure

    def measure(*arguments: object, **more: object) -> Compute:
        lines.append("measured")
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(choices, "measure", measure)
    return lines


def load_stack(
    model: ParityModel, memory: choices.Memory | None, *, stop: int = 3, dtype: torch.dtype = torch.float32
) -> LayerStack:
    stack = LayerStack(model.architecture, LayerRange(1, stop), dtype=dtype, **SIZES)
    stack.load(model.source, lambda done: None, memory=memory)
    return stack


def load_ends(model: ParityModel, memory: choices.Memory) -> EndLayers:
    count = model.architecture.layer_count
    end = EndLayers(model.architecture, LayerRange(0, 1), LayerRange(count, count), dtype=torch.float32, **SIZES)
    end.load(model.source, lambda done: None, memory=memory)
    return end


def test_what_one_member_measured_the_next_one_takes(llama: ParityModel, measured: list[str]) -> None:
    memory = RememberingStore()
    load_stack(llama, memory)
    load_ends(llama, memory)  # its layer and its head
    assert len(measured) == len(memory.known) == 3
    load_stack(llama, memory)
    load_ends(llama, memory)
    assert len(measured) == 3
    load_stack(llama, None)  # a member without a store measures
    assert len(measured) == 4


def test_other_weights_and_other_machines_are_measured_for_themselves(
    llama: ParityModel, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = RememberingStore()
    load_stack(llama, memory)
    load_stack(llama, memory, stop=4)
    load_stack(llama, memory, dtype=torch.float16)
    monkeypatch.setattr(choices, "_processor", lambda: ["model name\t: Another"])
    load_stack(llama, memory)
    assert len(measured) == len(memory.known) == 4


def test_choices_that_came_first_are_taken_although_others_were_measured() -> None:
    """Two members of one kind measure side by side: they compute alike nevertheless."""
    first = Compute(((1, WHOLE), (8, Arithmetic(torch.float32))))
    own = Compute(((1, Arithmetic(torch.float32)),))

    class Late(RememberingStore):
        def arithmetic(self, key: str) -> ArithmeticChoices | None:
            return None

    memory, ways = Late(), [WHOLE, Arithmetic(torch.float32)]
    assert choices.choose(memory, ["layers"], ways, lambda: first) == first
    assert choices.choose(memory, ["layers"], ways, lambda: own) == first


def test_a_store_that_remembers_nothing_is_no_obstacle() -> None:
    class Old(RememberingStore):
        def remember_arithmetic(self, key: str, choices: ArithmeticChoices) -> ArithmeticChoices | None:
            return None

    own = Compute(((1, Arithmetic(torch.float32)),))
    assert choices.choose(Old(), ["layers"], [Arithmetic(torch.float32)], lambda: own) == own


def test_what_a_member_could_not_have_measured_is_not_obeyed(llama: ParityModel, measured: list[str]) -> None:
    """Any member of the pipe may write: float16 arithmetic for float32 weights would change answers."""
    wrong = ArithmeticChoices(choices=(ArithmeticChoice(rows=1, dtype="float16", native=False, whole=False),))

    class Altered(RememberingStore):
        def arithmetic(self, key: str) -> ArithmeticChoices | None:
            return wrong

        def remember_arithmetic(self, key: str, choices: ArithmeticChoices) -> ArithmeticChoices | None:
            return wrong

    stack = load_stack(llama, Altered())
    assert len(measured) == 1
    assert "float16" not in str(stack._layers._compute)  # type: ignore[attr-defined]


@pytest.mark.native
def test_whole_steps_are_remembered_too(model_named: Callable[[str], ParityModel]) -> None:
    model, memory = model_named("qwen3"), RememberingStore()
    whole = ArithmeticChoices(choices=(ArithmeticChoice(rows=1, dtype="float32", native=True, whole=True),))
    load_stack(model, memory)
    (key,) = memory.known
    memory.known[key] = whole
    stack = load_stack(model, memory)
    assert str(stack._layers._compute) == "whole native steps from 1 rows"  # type: ignore[attr-defined]
