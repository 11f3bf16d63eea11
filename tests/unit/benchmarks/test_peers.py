"""The table of peers says what was asked, met and missed, and names who is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.described_machine import MACHINE

from benchmarks import llama_cpp_peer, vllm_peer
from benchmarks.bounds import MachineLimits
from benchmarks.peer_programs import PeerMissing, run_step
from benchmarks.peers import ASKED, CONTENDERS, FULL, GROUPS, QUICK, GroupResult, asked_table, report

BFLOAT16 = GroupResult(
    samples={
        "1 stream": {"ring bfloat16": [100.0, 50.0], "llama BF16": [80.0, 40.0]},
        "16 streams": {"ring bfloat16": [400.0, 400.0], "llama BF16": [200.0, 200.0], "vllm": [400.0, 500.0]},
    },
    problems={"llama BF16 RPC": "llama.cpp: cmake is not installed; it is needed\nto build it"},
    idle_cores={"ring bfloat16": 0.01, "vllm": 0.3},
    starts={"ring bfloat16": 3.0, "llama BF16": 1.0, "vllm": 120.0},
)


def _row(table: str, title: str) -> list[str]:
    found = next(line for line in table.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_ratio_is_taken_turn_by_turn_and_a_miss_is_called_one() -> None:
    table = asked_table({"bfloat16": BFLOAT16})

    met = _row(table, "ring, bfloat16 ÷ llama.cpp BF16, one process, 1 stream")
    missed = _row(table, "ring, bfloat16 ÷ vLLM")
    assert met[3:] == ["1.25 (1.25–1.25)", "≥ 1.00", "met"]
    assert missed[3:] == ["0.900 (0.800–1.00)", "≥ 1.30", "missed"]


def test_a_figure_that_is_not_there_has_its_row_all_the_same() -> None:
    table = asked_table({"bfloat16": BFLOAT16})

    assert _row(table, "ring, bfloat16 ÷ llama.cpp BF16, 2 RPC")[1:] == ["–", "–", "–", "≥ 2.00", "not measured"]
    assert len(table.splitlines()) == 2 + len(ASKED)


def test_the_report_names_every_peer_that_was_not_measured_with_its_reason() -> None:
    limits = MachineLimits(1e9, {"float32": 1e9})

    text = report(MACHINE, limits, {"bfloat16": BFLOAT16}, QUICK.figures(), stages=2, repeats=2)

    reason = "llama.cpp: cmake is not installed; it is needed to build it"
    assert f"- **llama.cpp BF16, 2 RPC servers** was not measured: {reason}" in text
    assert "A server that nobody asked took at most 0.30 of a core." in text
    assert _row(text, "vLLM for CPUs, bfloat16, one process")[1:] == ["not measured", "450 (400–500)"]


def test_every_ratio_that_is_asked_is_of_one_group_and_measured_by_the_quick_run_too() -> None:
    for effort in (QUICK, FULL):
        names = {figure.name for figure in effort.figures()}
        assert {each.figure for each in ASKED} <= names
    for each in ASKED:
        assert any({each.ours, each.peer} <= set(group) for group in GROUPS.values())
        assert CONTENDERS[each.ours].ours
        assert not CONTENDERS[each.peer].ours


def test_llama_cpp_is_built_for_what_the_processor_has_and_kept_apart_from_other_builds() -> None:
    options = llama_cpp_peer.set_options({"avx2", "fma", "sse2"})

    assert options["GGML_AVX2"] == "ON"
    assert options["GGML_AVX512_BF16"] == "OFF"
    assert llama_cpp_peer.build_directory({"avx2", "fma"}).name == "build-avx2-fma"
    assert llama_cpp_peer.build_directory(set()).name == "build-plain"


def test_a_step_of_a_build_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(PeerMissing, match=r"compile: sh ended with status 3; its log .* ends: no such header"):
        run_step("compile", ["sh", "-c", "echo no such header; exit 3"], log=tmp_path / "log")


def test_a_tool_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerMissing, match="configure: no-such-tool cannot be run"):
        run_step("configure", ["no-such-tool"], log=tmp_path / "log")


def test_vllm_without_avx2_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_peer, "HOME", tmp_path)
    monkeypatch.setattr(vllm_peer, "cpu_flags", lambda: frozenset({"sse2"}))

    with pytest.raises(PeerMissing, match="AVX2"):
        vllm_peer.install()


def test_vllm_gets_every_core_and_no_setting_of_the_callers(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()

    environment = vllm_peer.environment(python, {"VLLM_CPU_KVCACHE_SPACE": "40", "PATH": "/usr/bin"})

    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert environment["LD_PRELOAD"] == str(tmp_path / "lib" / "libiomp5.so")
    assert environment["PATH"] == f"{python.parent}:/usr/bin"
