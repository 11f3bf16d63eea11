"""A ring whose links carry 20 Mbit/s, with hidden states as wide as those of a model of 70 billion parameters serves
prompts of 512 tokens slowly, and without a broken epoch. Real sockets and the real engine; the layers compute nothing.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from languagepipes_node.end_model.engine import Engine, EngineSettings
from languagepipes_node.end_model.requests import Submission
from languagepipes_node.model.batch import Batch
from languagepipes_node.stage.loop import StageLoop
from languagepipes_node.wire.end_model_communicator import EndModelCommunicator
from languagepipes_node.wire.stage_communicator import StageCommunicator
from support.ports import free_address
from support.relayed_link import RelayedLink, mbit
from support.toy_engine import GREEDY, Client, make_plan
from support.waiting import eventually
from support.wire_ring import Pki, identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HIDDEN, VOCABULARY, STAGES = 8192, 61, 2
PROMPT_TOKENS, ANSWER_TOKENS = 512, 20


class Wide:
    """Embedding and head; which token follows depends on the last one alone."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.embedding = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(torch.bfloat16)
        self.head = torch.randn(VOCABULARY, HIDDEN, generator=generator)

    def front(self, tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.embedding[tokens]

    def back(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.float() @ self.head.T

    def answer(self, last: int) -> list[int]:
        tokens = [last]
        for _ in range(ANSWER_TOKENS):
            tokens.append(int(self.logits(self.embedding[tokens[-1:]]).argmax()))
        return tokens[1:]


class Nothing:
    device = torch.device("cpu")

    def run(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden


def test_prompts_of_512_tokens_go_round_a_ring_of_20_mbit_a_second_in_one_epoch(tmp_path: Path) -> None:
    plan = make_plan(
        stages=STAGES, hidden_size=HIDDEN, dtype="bfloat16", block_tokens=16, blocks=128, context=640, frame_tokens=512
    )
    pki, layers, client = Pki(tmp_path), Wide(), Client()
    with ExitStack() as stack:
        listens = [free_address() for _ in range(STAGES + 1)]
        links = [stack.enter_context(RelayedLink(each, bytes_per_second=mbit(20))) for each in listens]
        stopping = threading.Event()
        threads = []
        for number in range(1, STAGES + 1):
            files, successor = pki.files(identity(number)), links[(number + 1) % (STAGES + 1)].address
            stage = StageCommunicator(identity(number), plan, files, listens[number], successor)
            loop = StageLoop(
                Nothing(),  # type: ignore[arg-type]
                stage,
                hidden_size=HIDDEN,
                dtype=torch.bfloat16,
                rows_only=number == STAGES,
            )
            stage.start()
            stack.callback(stage.close)
            threads.append(threading.Thread(target=loop.run, args=(stopping,)))
        end = EndModelCommunicator(identity(0), plan, pki.files(identity(0)), listens[0], links[1].address)
        stack.callback(end.close)
        engine = Engine(layers, end, plan=plan, settings=EngineSettings(), deliver=client.deliver)
        threads.append(threading.Thread(target=engine.run_forever))
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join(20) for thread in threads])
        stack.callback(stopping.set)
        stack.callback(engine.stop)
        eventually(lambda: engine.status.ring_ready)

        began = time.monotonic()
        prompts = [[(seed + place) % VOCABULARY for place in range(PROMPT_TOKENS)] for seed in range(3)]
        for request, prompt in enumerate(prompts):
            engine.submit(Submission(request, tuple(prompt), ANSWER_TOKENS, GREEDY))
            if request == 1:  # the third joins streams, the first two share frames
                eventually(lambda: client.tokens(0), seconds=60)
        eventually(lambda: all(client.finish(request) for request in range(len(prompts))), seconds=120)

        assert [client.tokens(request) for request in range(len(prompts))] == [
            layers.answer(prompt[-1]) for prompt in prompts
        ]
        assert engine.status.epoch == 1
        # The links were what it waited for.
        prompt_bytes = len(prompts) * PROMPT_TOKENS * HIDDEN * 2
        assert links[1].forwarded > prompt_bytes
        assert time.monotonic() - began > prompt_bytes / mbit(20)
