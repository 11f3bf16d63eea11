"""What a stage is shown: hidden states, lengths and block numbers. No token id, no text, no embedding row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from languagepipes_api.member_settings import SpeculativeDecoding
from languagepipes_api.plan import Quantization
from languagepipes_node.end_model.engine import EngineSettings
from languagepipes_node.model.architecture import Architecture
from languagepipes_node.weights.directory import SafetensorsDirectory
from support.models import ModelNamed, ParityModel
from support.quantised_models import make, quantise_directory
from support.recorder import HEARTBEAT, HELLO, STEP, Recorded, Recorder, frames
from support.thread_ring import ThreadRing, plan_of

LENGTHS = (3, 40, 70)
TOKENS = 8


def record(
    model: ParityModel, prompts: list[list[int]], tls_root: Path
) -> tuple[list[list[Recorded]], list[list[int]]]:
    """Answer `prompts` one after another; every stream of every stage, and the generated tokens."""
    architecture = Architecture.from_config(json.loads((model.path / "config.json").read_text()))
    plan = plan_of(architecture, [(1, 3), (3, 6)], dtype="float32", frame_tokens=32, blocks=32)
    recorder = Recorder()
    # One prompt frame at a time: otherwise the sizes of chunks follow measured times, which differ from run to run.
    settings = EngineSettings(shared_cores=True, prefill_frames=1)
    with ThreadRing(model.path, plan, tls_root, settings=settings, stage_transport=recorder.transport) as ring:
        answers = [ring.generate([prompt], TOKENS)[0] for prompt in prompts]
    streams = [frames(bytes(stream.data), itemsize=4) for stream in recorder.streams if stream.data]
    return streams, answers


def steps(streams: list[list[Recorded]]) -> list[list[Recorded]]:
    return [chosen for stream in streams if (chosen := [frame for frame in stream if frame.kind == STEP])]


def test_two_texts_of_equal_lengths_differ_for_a_stage_in_hidden_states_alone(
    model_named: ModelNamed, tmp_path: Path
) -> None:
    model = model_named("llama")
    first = [model.prompt(length) for length in LENGTHS]
    second = [[1 + (token * 7 + 3) % (model.vocabulary - 1) for token in prompt] for prompt in first]
    seen_first, answers_first = record(model, first, tmp_path / "first")
    seen_second, answers_second = record(model, second, tmp_path / "second")

    assert answers_first != answers_second
    shapes = [
        [[(frame.counts, frame.arrays) for frame in stream] for stream in steps(seen)]
        for seen in (seen_first, seen_second)
    ]
    assert len(shapes[0]) == 4  # two stages, each a stream in and a stream out
    assert sorted(shapes[0]) == sorted(shapes[1])


def test_no_embedding_row_is_sent_and_every_byte_is_in_a_field_of_the_format(
    model_named: ModelNamed, tmp_path: Path
) -> None:
    model = model_named("llama")
    streams, _ = record(model, [model.prompt(length) for length in LENGTHS], tmp_path)

    embedding = model.oracle.get_input_embeddings().weight.detach()
    embedding_rows = {row.numpy().tobytes() for row in embedding}
    norms = embedding / embedding.norm(dim=1, keepdim=True)
    sent = [row for stream in steps(streams) for frame in stream for row in frame.rows]
    assert len(sent) > 3 * sum(LENGTHS)  # in and out of stage 1, into stage 2; the wanted rows alone return
    assert not embedding_rows.intersection(sent)
    hidden = torch.from_numpy(np.frombuffer(b"".join(sent), np.float32).reshape(len(sent), -1).copy())
    likeness = (hidden / hidden.norm(dim=1, keepdim=True)) @ norms.T
    assert float(likeness.max()) < 0.999  # nor is one sent scaled


def test_hellos_and_heartbeats_name_only_what_the_protocol_page_lists(model_named: ModelNamed, tmp_path: Path) -> None:
    model = model_named("llama")
    prompt = model.prompt(40)
    streams, answers = record(model, [prompt], tmp_path)

    kinds = {frame.kind for stream in streams for frame in stream}
    assert HELLO in kinds
    for stream in streams:
        for frame in stream:
            if frame.kind == HEARTBEAT:
                assert frame.message is None
            elif frame.kind != STEP:
                text = repr(frame.message)
                assert str(prompt)[1:-1] not in text
                assert str(answers[0])[1:-1] not in text


@pytest.mark.parametrize(
    ("speculation", "quantization"), [("none", "none"), ("ngram", "none"), ("ngram", "int8")], ids=lambda value: value
)
def test_token_ids_are_in_no_byte_sequence_that_a_stage_sees(
    model_named: ModelNamed, tmp_path: Path, speculation: SpeculativeDecoding, quantization: Quantization
) -> None:
    """Drafts are hidden states, as all else; the second time the prompt begins with known blocks."""
    model = model_named("llama")
    prompt = model.prompt(10) * 8
    path = model.path
    if quantization != "none":
        make("llama", tmp_path / "made")  # of sizes that can be quantised
        path = quantise_directory(tmp_path / "made", tmp_path / "quantised", quantization)
        assert SafetensorsDirectory(path).info("model.layers.1.mlp.down_proj.weight").dtype != np.float32
    architecture = Architecture.from_config(json.loads((path / "config.json").read_text()))
    plan = plan_of(architecture, [(1, 3), (3, 6)], dtype="float32", frame_tokens=64, blocks=32)
    recorder = Recorder()
    settings = EngineSettings(shared_cores=True, speculation=speculation)
    with ThreadRing(path, plan, tmp_path, settings=settings, stage_transport=recorder.transport) as ring:
        answer = ring.generate([prompt], 4 * TOKENS)[0]
        assert ring.generate([prompt], 4 * TOKENS)[0] == answer
    everything = b"|".join(bytes(stream.data) for stream in recorder.streams)
    for tokens in (prompt, answer):
        for dtype in (np.uint8, np.int16, np.int32, np.int64, np.float32):
            for at in range(len(tokens) - 5):
                assert np.array(tokens[at : at + 6], dtype=dtype).tobytes() not in everything
