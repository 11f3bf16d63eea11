"""Arrivals, lengths, prompts, and what the command line takes."""

from __future__ import annotations

import argparse
import itertools
import random
import statistics

import pytest
from languagepipes_operator.cli.bench.arrivals import poisson
from languagepipes_operator.cli.bench.lengths import Fixed, Normal, Uniform, parse_lengths
from languagepipes_operator.cli.bench.options import BenchOptions, Level, add_arguments, parse_seconds
from languagepipes_operator.cli.bench.prompts import WORDS, Scale, Workload, sample_words


def options(*arguments: str) -> BenchOptions:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return BenchOptions.from_arguments(parser.parse_args(["http://127.0.0.1:8000", *arguments]))


def workload(seed: int = 1, shared: int = 0, scale: Scale | None = None) -> Workload:
    return Workload(
        seed,
        prompt_tokens=Uniform(20, 40),
        output_tokens=Normal(16, 4),
        shared_prefix_tokens=shared,
        scale=scale or Scale(),
    )


def test_arrivals_are_a_poisson_process_of_the_wanted_rate() -> None:
    times = list(itertools.islice(poisson(8.0, random.Random(3)), 20_000))
    gaps = [later - earlier for earlier, later in itertools.pairwise([0.0, *times])]

    assert times == sorted(times)
    assert statistics.mean(gaps) == pytest.approx(1 / 8, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 8, rel=0.03), "as of an exponential distribution"


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, second = (list(itertools.islice(poisson(2.0, random.Random("a")), 50)) for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    ("text", "lengths"),
    [("128", Fixed(128)), ("64-256", Uniform(64, 256)), ("7-7", Uniform(7, 7)), ("normal:100:20", Normal(100, 20))],
)
def test_lengths_are_fixed_or_drawn(text: str, lengths: object) -> None:
    parsed = parse_lengths(text)
    drawn = [parsed.draw(random.Random(number)) for number in range(500)]

    assert parsed == lengths
    assert str(parsed) == text
    assert min(drawn) >= 1
    assert statistics.mean(drawn) == pytest.approx(parsed.typical, rel=0.05)


@pytest.mark.parametrize("text", ["0", "-5", "10-5", "0-5", "normal:5", "normal:0:1", "pareto:1:2", "1.5", ""])
def test_other_lengths_are_refused_with_what_can_be_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"use N, LOW-HIGH \(uniform\), or normal:MEAN:STDDEV"):
        parse_lengths(text)


def test_prompts_share_nothing_and_a_seed_gives_them_again() -> None:
    first, again, other = workload(1), workload(1), workload(2)
    prompts = [first.job(number).prompt for number in range(300)]

    assert [again.job(number).prompt for number in reversed(range(300))] == prompts[::-1]
    assert other.job(5).prompt != prompts[5]
    assert len({" ".join(prompt.split()[:8]) for prompt in prompts}) == 300, "no block of a prefix cache occurs twice"


def test_a_shared_prefix_comes_before_every_prompt_and_is_as_long_as_asked_for() -> None:
    prompts = [workload(shared=50).job(number).prompt.split() for number in range(20)]

    assert len({tuple(prompt[:50]) for prompt in prompts}) == 1
    assert len({tuple(prompt[50:58]) for prompt in prompts}) == 20
    assert all(70 <= len(prompt) <= 90 for prompt in prompts)


def test_words_are_counted_out_by_what_the_server_counts() -> None:
    scale = Scale.through((16, 16 * 3 + 30), (200, 200 * 3 + 30))

    assert (scale.overhead_tokens, scale.tokens_per_word) == (30, 3)
    assert scale.words(330) == 100
    assert scale.words(5) == 1, "no prompt is shorter than the template"
    assert Scale.through((16, 100), (200, 100)) == Scale(), "a server that counts something else"


@pytest.mark.parametrize("count", [16, 57, 1024])
def test_the_words_of_a_probe_are_as_long_as_words_are_on_average(count: int) -> None:
    words = sample_words(random.Random(1), count).split()

    assert len(words) == count
    assert sum(map(len, words)) / count == pytest.approx(sum(map(len, WORDS)) / len(WORDS), rel=0.03)


def test_words_are_all_different() -> None:
    assert len(set(WORDS)) == len(WORDS)


def test_levels_are_a_sweep_of_streams_or_of_rates() -> None:
    assert options().levels == (Level("streams", 1),)
    assert options("--streams", "1,4,16").levels == tuple(Level("streams", streams) for streams in (1, 4, 16))
    assert options("--rate", "0.5,2").levels == (Level("rate", 0.5), Level("rate", 2.0))


def test_goodput_takes_times_with_units_and_milliseconds_without_as_vllm_does() -> None:
    assert options("--goodput", "ttft:500ms,tpot:50,e2el:2s").goodput == {"ttft": 0.5, "tpot": 0.05, "e2el": 2.0}


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("2s", 2), ("1.5m", 90), ("1h", 3600), ("30", 30)])
def test_times_have_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--streams", "0"), "'0' is no whole number of 1 or more"),
        (("--streams", "1,x"), "'x' is no whole number of 1 or more"),
        (("--rate", "0"), "'0' is no number above 0"),
        (("--rate", "nan"), "'nan' is no number above 0"),
        (("--duration", "soon"), "'soon' is no time above 0: use a number and ms, s, m or h"),
        (("--goodput", "itl:5ms"), "'itl' is none of ttft, tpot, e2el"),
        (("--goodput", "ttft"), "'' is no time above 0"),
        (("--extra-body", "[1]"), "'[1]' is no JSON object"),
        (("--prompt-tokens", "0"), "'0' is no number of tokens"),
        (("--streams", "1", "--rate", "1"), "not allowed with argument"),
        (("--requests", "1", "--duration", "1s"), "not allowed with argument"),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_value(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(*arguments)

    assert message in capsys.readouterr().err
