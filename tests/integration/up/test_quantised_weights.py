"""`languagepipes up` with each mode of quantization: planned bytes are held bytes, and prompts score as the unsplit
model scores them with the values that the quantised weights stand for.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from languagepipes_api.plan import Quantization
from languagepipes_node.weights.gguf_convert import convert
from support.llama_files import write_tiny_llama
from support.up import LANGUAGEPIPES, Up, pipe

pytestmark = pytest.mark.slow

TEXT = (
    "The sea was calm that morning, and the fishermen pushed their boats into the water one after another. "
    "Nobody spoke. Far out, where the light met the waves, a single sail was coming home."
)
MODES: tuple[Quantization, ...] = ("asStored", "int8", "int4")


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> Quantization:
    value: Quantization = request.param
    return value


def smollm2_pipe(model_file: Path, mode: Quantization) -> dict[str, Any]:
    model = {"dtype": "float32", "quantization": mode, "maxContextLength": 1024}
    return pipe(f"file://{model_file}", name="smollm2", model=model, endModel={"localLayers": 2})


@pytest.fixture(scope="module")
def up(mode: Quantization, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(smollm2_pipe(model_file, mode), tmp_path_factory.mktemp(mode)) as running:
        yield running


def planned(up: Up) -> dict[str, Any]:
    printed = subprocess.run([LANGUAGEPIPES, "plan", up.file, "-o", "json"], capture_output=True, check=True).stdout
    plan: dict[str, Any] = json.loads(printed)
    return plan


def unsplit_logprobs(model_file: Path, directory: Path, tokens: list[int]) -> list[float]:
    """transformers' own code, float32, with the values that the quantised weights stand for."""
    import torch
    from support.quantised_models import dequantised_tensors
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_file.parent, gguf_file=model_file.name, dtype=torch.float32)
    values = {name: torch.from_numpy(value) for name, value in dequantised_tensors(directory).items()}
    model.load_state_dict({**values, "lm_head.weight": values["model.embed_tokens.weight"]})
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([tokens])).logits[0], -1)
    return [float(scores[place, token]) for place, token in enumerate(tokens[1:])]


def test_a_prompt_scores_as_the_unsplit_model_scores_it(
    up: Up, mode: Quantization, model_file: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    made = convert(model_file, tmp_path / "made", dtype="float32", quantization=mode)
    tokens = Tokenizer.from_file(str(made / "tokenizer.json")).encode(TEXT).ids
    answer = up.client().completions.create(
        model="smollm2", prompt=tokens, echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    scored = [float(value) for value in logprobs.token_logprobs[1 : len(tokens)] if value is not None]
    expected = unsplit_logprobs(model_file, made, tokens)
    assert len(scored) == len(expected)
    differences = [abs(ours - theirs) for ours, theirs in zip(scored, expected, strict=True)]
    # The native kernels round activations to 8 bits (0.07 on average here), which costs this small model about as much
    # as bfloat16 does; a wrong scale or a row out of place costs several nats a token.
    assert sum(differences) / len(differences) < 0.15
    assert max(differences) < 0.8


def test_answers_make_sense(up: Up) -> None:
    prompt = "Paris is the capital of France. London is the capital of England. Rome is the capital of"
    answer = up.client().completions.create(model="smollm2", prompt=prompt, temperature=0, max_tokens=4)
    assert answer.choices[0].text.startswith(" Italy")


def test_members_hold_the_bytes_that_were_planned(up: Up, mode: Quantization) -> None:
    plan = planned(up)
    assert plan["quantization"] == mode
    for stage, assignment in zip(up.ready["stages"], plan["stages"], strict=True):
        assert up.metric(stage, "languagepipes_load_total_bytes") == assignment["weight_bytes"]
        assert up.metric(stage, "languagepipes_load_bytes") == assignment["weight_bytes"]
    end = up.ready["end_model"]
    assert up.metric(end, "languagepipes_load_bytes") == plan["end_model"]["weight_bytes"]
    layers = 28 * 3_540_096
    ratio = sum(assignment["weight_bytes"] for assignment in plan["stages"]) / (2 * layers)
    assert ratio == pytest.approx({"int8": 0.532, "int4": 0.314, "asStored": 0.314}[mode], abs=0.002)


def test_plans_say_how_weights_are_kept(model_file: Path, mode: Quantization, tmp_path: Path) -> None:
    file = tmp_path / "pipe.yaml"
    file.write_text(yaml.safe_dump(smollm2_pipe(model_file, mode)))
    shown = subprocess.run([LANGUAGEPIPES, "plan", file], capture_output=True, text=True, check=True).stdout
    said = " ".join(shown.split())
    assert f"{mode} weights, float32 otherwise" in said
    notes = {"asStored": "Kept as stored: 210 Q4_1, 1 Q8_0"}
    assert notes.get(mode, "The file is quantised already (210 Q4_1, 1 Q8_0)") in said


def test_a_source_with_nothing_quantised_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model")
    file = tmp_path / "pipe.yaml"
    file.write_text(yaml.safe_dump(pipe(f"file://{model}", model={"quantization": "asStored", "maxContextLength": 64})))
    for command in ("plan", "up"):
        done = subprocess.run([LANGUAGEPIPES, command, file], capture_output=True, text=True, timeout=60, check=False)
        said = re.sub(r"\s+", " ", done.stdout + done.stderr)
        assert done.returncode != 0
        assert "set spec.model.quantization to int8, int4 or none" in said


def test_safetensors_are_quantised_once(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model")
    resource = pipe(f"file://{model}", model={"quantization": "int4", "dtype": "float32", "maxContextLength": 64})
    made = tmp_path / "run" / "cache" / "converted"
    written = []
    for _ in range(2):
        with Up(resource, tmp_path / "run") as running:
            running.client().completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=2)
            (directory,) = made.iterdir()
            written.append((directory / "model.safetensors").stat().st_mtime_ns)
        running.ready_file.unlink(missing_ok=True)
    assert directory.name.endswith("-int4")
    assert written[0] == written[1]
