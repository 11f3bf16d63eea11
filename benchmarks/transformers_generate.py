"""The baseline: transformers' `generate` in one process, all cores, float32 and bfloat16, greedy.

`Generate` starts the process and asks it; the process reads one JSON object a line and answers with one. It stays
loaded and idle (blocked on its standard input) while the ring is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prompts import Messages

DTYPES = ("float32", "bfloat16")
_ROOT = Path(__file__).resolve().parent.parent


class GenerateFailed(RuntimeError):
    """The baseline process ended or answered with an error, which the message repeats."""


@dataclass(frozen=True)
class Generation:
    """One call of `generate`: text in, token ids out. Seconds from before tokenising.

    decode_tokens_per_second: tokens after the first of each sequence, over the time after the first.
    """

    seconds: float
    first_token_seconds: float
    prompt_tokens: list[int]
    new_tokens: int
    texts: list[str]
    early_ends: int

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds

    @property
    def decode_tokens_per_second(self) -> float:
        rest = self.new_tokens - len(self.prompt_tokens)
        return rest / (self.seconds - self.first_token_seconds)


class Generate:
    """One baseline process with one model, in every dtype of `dtypes`. A context manager."""

    def __init__(self, directory: Path, *, threads: int, dtypes: tuple[str, ...] = DTYPES) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-m", "benchmarks.transformers_generate", str(directory), str(threads), *dtypes]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.load_seconds: dict[str, float] = self._answer()["load_seconds"]

    def generate(self, dtype: str, prompts: list[Messages], *, new_tokens: int) -> Generation:
        """Generate exactly `new_tokens` for each prompt, as one batch (padded left)."""
        return Generation(**self._ask({"dtype": dtype, "prompts": prompts, "new_tokens": new_tokens}))

    def count(self, prompt: Messages) -> int:
        """The prompt's tokens, chat template included."""
        return int(self._ask({"count": prompt})["count"])

    def __enter__(self) -> Generate:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise GenerateFailed(f"the transformers process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GenerateFailed(answer["error"])
        return answer


def _serve(directory: str, threads: int, dtypes: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    models, load_seconds = {}, {}
    for dtype in dtypes:
        started = time.perf_counter()
        models[dtype] = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
        load_seconds[dtype] = time.perf_counter() - started
    stops = models[dtypes[0]].generation_config.eos_token_id
    stop_ids = set(stops if isinstance(stops, list) else [stops]) | {tokenizer.eos_token_id}

    class Clock(StoppingCriteria):  # type: ignore[misc]
        """Notes when each token was there, and stops nothing."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    def templated(prompt: Messages) -> str:
        return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if "count" in question:
            return {"count": len(tokenizer(templated(question["count"]))["input_ids"])}
        model, new_tokens, clock = models[question["dtype"]], question["new_tokens"], Clock()
        # Without an end token every sequence runs its full length, as every other contender's is made to.
        config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=None
        )
        started = time.perf_counter()
        inputs = tokenizer([templated(prompt) for prompt in question["prompts"]], return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = model.generate(
                **{name: inputs[name] for name in ("input_ids", "attention_mask")},
                generation_config=config,
                stopping_criteria=[clock],
            )
        seconds = time.perf_counter() - started
        new = output[:, inputs["input_ids"].shape[1] :]
        return {
            "seconds": seconds,
            "first_token_seconds": clock.times[0] - started,
            "prompt_tokens": inputs["attention_mask"].sum(dim=1).tolist(),
            "new_tokens": new.numel(),
            "texts": tokenizer.batch_decode(new),
            "early_ends": sum(any(token in stop_ids for token in row) for row in new.tolist()),
        }

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the answers
    print(json.dumps({"load_seconds": load_seconds}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # the parent reports it; this process may still serve other questions
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
