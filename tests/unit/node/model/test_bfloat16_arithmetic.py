"""bfloat16 dot products: close to exact arithmetic on rounded inputs, and the same for a row whoever it comes with."""

from __future__ import annotations

import ctypes
import fcntl
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from languagepipes_node.model import kernels
from languagepipes_node.model.linear import WHOLE, always
from languagepipes_node.model.matrix import Matrix, multiply, panels
from support.models import MODELS, ParityModel
from support.native import levels
from support.replica import SPLITS, Replica, Running

ROOT = Path(__file__).resolve().parents[4]
MOST_ROWS = 70
# 600 tokens: one by one at the start, over borders of blocks of keys (64) and of KV (16), around the borders of an
# attention's parts (256 and 512: PART_TOKENS in kernels.h), and at the end.
BY_TOKENS = (*[1] * 80, 160, *[1] * 36, 218, *[1] * 36, 60, *[1] * 10)
# transformers' own distance from float32, in the same dtype, is the measure: see test_logits.
SIXTEEN_BITS = 1.5

# The families that whole steps serve: with biases, grouped queries, windows, norms of queries and keys, and experts.
SERVED = [name for name in MODELS if "by transformers" not in name and name != "llama"]

pytestmark = [pytest.mark.native, pytest.mark.native_level(kernels.BFLOAT16_PAIRS)]


# The levels, and AVX512-BF16 with its panels widened to float32 too, whichever of the two is faster here.
WAYS = [(level, False) for level in levels(kernels.BFLOAT16_PAIRS)] + [(kernels.BFLOAT16_PAIRS, True)]


@pytest.fixture(params=WAYS, ids=lambda way: kernels.LEVELS[way[0]] + (" widened" if way[1] else ""))
def pairs_level(request: pytest.FixtureRequest) -> Iterator[None]:
    level, widened = request.param
    native, _ = kernels.library()
    before = native.lp_widens_panels(-1)
    kernels.use_level(level)
    native.lp_widens_panels(widened)
    yield
    native.lp_widens_panels(before)
    kernels.use_level(None)


def test_the_same_processor_widens_panels_at_every_start() -> None:
    native, _ = kernels.library()
    answers = set()
    for _ in range(10):
        native.lp_instruction_set()
        answers.add(native.lp_widens_panels(-1))
    assert len(answers) == 1


def rounded(*shape: int) -> torch.Tensor:
    """Random numbers that bfloat16 can hold, as float32."""
    return torch.randn(*shape).bfloat16().float()


def assert_close_to_exact(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    assert ((y.double() - exact).abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize("width", [1, 31, 32, 33, 65, 96])
@pytest.mark.parametrize("depth", [1, 2, 31, 32, 33, 64, 513, 1056])
def test_products_of_panels_are_exact_but_for_float32_sums(pairs_level: None, width: int, depth: int) -> None:
    torch.manual_seed(width + depth)
    x, weight = rounded(MOST_ROWS, depth), rounded(width, depth)
    packed = panels(weight.bfloat16())
    whole = multiply(x, packed)
    assert_close_to_exact(whole, x, weight)
    for rows in range(1, MOST_ROWS):
        assert torch.equal(multiply(x[:rows].contiguous(), packed), whole[:rows]), rows


def test_more_rows_than_a_block_of_rows_are_the_same_rows(pairs_level: None) -> None:
    x, weight = rounded(500, 96), rounded(64, 96)
    packed = panels(weight.bfloat16())
    whole = multiply(x, packed)
    assert_close_to_exact(whole, x, weight)
    assert torch.equal(multiply(x[300:301].contiguous(), packed), whole[300:301])


@pytest.mark.parametrize(("width", "depth"), [(64, 96), (193, 72)])
def test_panels_give_back_the_rows_of_an_embedding(width: int, depth: int) -> None:
    weight = torch.randn(width, depth).bfloat16()
    indices = torch.tensor([5, 0, width - 1, 32, 5])
    expected = weight[indices]
    assert torch.equal(panels(weight).rows(indices), expected)


def test_panels_take_the_place_of_a_weight_whose_sizes_are_whole() -> None:
    weight = torch.randn(64, 96).bfloat16()
    packed = panels(weight)
    assert packed.data.data_ptr() == weight.data_ptr()
    assert packed.nbytes == 64 * 96 * 2


def test_a_kind_that_the_level_does_not_have_is_refused() -> None:
    packed = panels(torch.zeros(32, 32, dtype=torch.bfloat16))
    kernels.use_level(kernels.AVX2)
    try:
        with pytest.raises(ValueError, match="AVX2 has no product for weights of kind 3"):
            multiply(torch.zeros(1, 32), packed)
    finally:
        kernels.use_level(None)


def assert_near_to_float32(ours: torch.Tensor, model: ParityModel, prompt: list[int]) -> None:
    reference = model.logits(prompt)
    theirs = (model.logits(prompt, torch.bfloat16) - reference).square().mean(-1).sqrt().median()
    assert (ours - reference).square().mean(-1).sqrt().median() < SIXTEEN_BITS * theirs


def replica_of(model: ParityModel, **options: bool) -> Replica:
    return Replica(model, SPLITS[3], dtype=torch.bfloat16, compute=always(WHOLE), **options)


@pytest.mark.parametrize("name", SERVED)
def test_bfloat16_steps_are_as_near_to_float32_as_transformers_are(
    name: str, pairs_level: None, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    prompt = model.prompt(300)
    assert_near_to_float32(replica_of(model, scattered=True).logits(prompt, chunk=130), model, prompt)


@pytest.mark.parametrize(
    "name",
    ["qwen3 sliding from layer 3", "llama tied, one kv head", "llama with biases, llama3 rope", "qwen3_moe"],
)
def test_a_sequence_has_the_same_numbers_by_tokens_by_chunks_and_whole(
    name: str, pairs_level: None, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    prompt = model.prompt(600)  # more than two parts of an attention
    replica = replica_of(model)
    whole = replica.logits(prompt)
    assert torch.equal(replica.logits_in(prompt, BY_TOKENS), whole)
    assert torch.equal(replica.logits(prompt, chunk=97), whole)


@pytest.mark.parametrize("name", ["qwen3", "mistral sliding", "qwen3_moe with dense layers"])
def test_a_sequence_has_the_same_numbers_in_every_company(
    name: str, pairs_level: None, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named(name)
    prompts = [model.prompt(3 + place % 14, seed=place) for place in range(MOST_ROWS)]

    def decode(company: int, threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        replica, sequences = replica_of(model), [Running() for _ in range(company)]
        replica.step([(s, p[:-1], []) for s, p in zip(sequences, prompts, strict=False)])
        return replica.step([(s, p[-1:], [0]) for s, p in zip(sequences, prompts, strict=False)])

    together = decode(MOST_ROWS, threads=1)
    for company in (*range(1, 20), 33, 47, 64):
        assert torch.equal(decode(company, threads=1 + company % 3), together[:company]), company


def test_a_long_context_has_the_same_numbers_with_any_number_of_threads(
    pairs_level: None, model_named: Callable[[str], ParityModel]
) -> None:
    model = model_named("llama tied, one kv head")
    prompt = model.prompt(1100)
    answers = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        replica, sequence = replica_of(model), Running()
        replica.step([(sequence, prompt[:-3], [])])
        answers.append(torch.cat([replica.step([(sequence, [token], [0])]) for token in prompt[-3:]]))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def c_compiler() -> str:
    compiler = shutil.which("cc")
    assert compiler, "the native kernels are here, but not the C compiler that made them: install one"
    return compiler


def test_all_of_the_tiles_configuration_is_in_memory_when_the_processor_reads_it(tmp_path: Path) -> None:
    # Compilers that are not told what LDTILECFG reads leave stores out. The compiled code runs on any processor: in
    # its assembly the instruction is replaced by a copy of the 64 bytes that it would read.
    listing, library = tmp_path / "tiles.s", tmp_path / "tiles.so"
    source = ROOT / "node" / "native" / "tiles.c"
    subprocess.run([c_compiler(), "-O3", "-fopenmp", "-fPIC", "-S", source, "-o", listing], check=True)

    def copy(found: re.Match[str]) -> str:
        offset, register = int(found[1] or 0), found[2]
        lines = ["movq seen@GOTPCREL(%rip), %r11"]
        for at in range(0, 64, 16):
            lines += [f"movdqu {offset + at}({register}), %xmm15", f"movdqu %xmm15, {at}(%r11)"]
        return "\n".join(lines)

    text, count = re.subn(r"\bldtilecfg\s+(-?\d*)\((%\w+)\)", copy, listing.read_text())
    assert count
    listing.write_text(text + "\n.comm seen,64,64\n")
    subprocess.run([c_compiler(), "-shared", listing, "-o", library], check=True)
    compiled = ctypes.CDLL(str(library))
    compiled.tiles_enter()
    seen = bytes((ctypes.c_char * 64).in_dll(compiled, "seen"))
    palette, start_row, reserved = 1, 0, bytes(14)
    row_bytes = (64).to_bytes(2, "little") * 8 + bytes(16)
    assert seen == bytes([palette, start_row]) + reserved + row_bytes + bytes([16] * 8) + bytes(8)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> ctypes.CDLL:
    """The kernels with tiles that follow Intel's manual in plain C, for processors without AMX; compiled once for all
    workers."""
    kernels.library()  # torch's OpenMP is visible from here on
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "emulated-tiles"
    folder.mkdir(exist_ok=True)
    path = folder / "emulated.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_with_emulated_tiles(path)
    library = ctypes.CDLL(str(path))
    kernels.declare(library)
    return library


def compile_with_emulated_tiles(path: Path) -> None:
    compiler = c_compiler()
    sources = sorted((ROOT / "node" / "native").glob("*.c"))
    objects = [path.with_name(f"{source.stem}.o") for source in sources]
    options = ["-fopenmp", "-fPIC", "-fvisibility=hidden", "-DLP_EMULATE_TILES"]
    for source, built in zip(sources, objects, strict=True):
        level = "-O3" if source.stem == "tiles" else "-O1"  # the others' speed does not matter
        subprocess.run([compiler, level, *options, "-c", source, "-o", built], check=True)
    # Not linked against OpenMP, as the installed kernels are not.
    subprocess.run([compiler, "-shared", *objects, "-o", path], check=True)


def by_emulated_tiles(library: ctypes.CDLL, x: torch.Tensor, weight: Matrix) -> torch.Tensor:
    matrix, rows = weight.native(), x.shape[0]
    y = torch.full((rows, weight.width), torch.nan)
    scratch = torch.full((library.lp_linear_scratch(ctypes.byref(matrix), rows, kernels.AMX),), 255, dtype=torch.uint8)
    done = library.lp_linear(y.data_ptr(), x.data_ptr(), ctypes.byref(matrix), rows, scratch.data_ptr(), kernels.AMX)
    assert done == 0
    return y


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (32, 32), (65, 33), (96, 544)])
def test_tiles_multiply_as_their_manual_says(emulated: ctypes.CDLL, width: int, depth: int) -> None:
    assert emulated.lp_instruction_set() == kernels.AMX  # and so the check at start passes
    x, weight = rounded(MOST_ROWS, depth), rounded(width, depth)
    packed = panels(weight.bfloat16())
    whole = by_emulated_tiles(emulated, x, packed)
    assert_close_to_exact(whole, x, weight)
    for rows in (1, 15, 16, 17, 31, 32, 33, 48, 69):
        assert torch.equal(by_emulated_tiles(emulated, x[:rows].contiguous(), packed), whole[:rows]), rows


@pytest.mark.parametrize("name", ["qwen3 sliding from layer 3", "qwen3_moe with dense layers"])
def test_whole_steps_by_tiles_are_as_near_to_float32_and_the_same_in_every_company(
    name: str, emulated: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, model_named: Callable[[str], ParityModel]
) -> None:
    monkeypatch.setattr(kernels, "_loaded", lambda: (emulated, kernels.AMX))  # as on a processor with AMX
    model = model_named(name)
    prompt = model.prompt(50)
    replica = replica_of(model, scattered=True)
    whole = replica.logits(prompt)
    assert_near_to_float32(whole, model, prompt)
    assert torch.equal(replica.logits(prompt, chunk=19), whole)
    assert torch.equal(replica.logits(prompt, chunk=1), whole)
