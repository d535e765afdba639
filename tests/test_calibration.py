"""Prompts: read with the line at fault, freed of doubles, split without a leak, and how far they are from production."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import AdvisorError
from advisor.executor.quantizing.calibration import (
    SHORTEST,
    describe_calibration,
    jensen_shannon,
    match_lengths,
    read_prompts,
    sample_trace,
    split_prompts,
    token_distance,
)


def tokenize(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % 50000 for word in text.split()]


def texts(count: int, start: int = 0, length: int = 30) -> list[str]:
    return [" ".join(f"w{(start + n) * 97 + k * k}" for k in range(length)) for n in range(count)]


def _file(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_text_and_messages_are_read(tmp_path: Path) -> None:
    path = _file(tmp_path / "p.jsonl", {"text": "one"}, "", {"messages": [{"role": "user", "content": "two"}]})
    assert read_prompts(path, lambda messages: f"<{messages[0]['content']}>") == ("one", "<two>")


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"text": 3}', '{"messages": []}', '{"messages": [{"role": "user"}]}', '{"prompt": 3}']
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = _file(tmp_path / "p.jsonl", {"text": "fine"}, line)
    with pytest.raises(AdvisorError) as caught:
        read_prompts(path, str)
    assert caught.value.where == f"{path}:2"


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_gives_a_sample_of_its_texts_that_the_seed_decides(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": n, "input_length": 9, "output_length": 9, "prompt": f"prompt {n}"} for n in range(200)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    one, same, other = (sample_trace(path, str, count=50, seed=seed) for seed in (1, 1, 2))
    assert len(set(one)) == 50 and one == same and set(one) != set(other)
    assert list(one) == sorted(one, key=lambda text: int(text.split()[1]))
    assert len(sample_trace(path, str)) == 200
    later = sum(int(text.split()[1]) >= 100 for seed in range(20) for text in sample_trace(path, str, count=50, seed=seed))
    assert 400 < later < 600  # of 1,000 draws, half from each half of the file


def test_messages_of_a_trace_are_rendered_and_lines_without_texts_left_out(tmp_path: Path) -> None:
    row = {"timestamp": 1, "input_length": 9, "output_length": 9}
    path = _file(tmp_path / "t.jsonl", row, row | {"messages": [{"role": "user", "content": "hello"}]}, row | {"text": ""})
    assert sample_trace(path, lambda messages: messages[0]["content"]) == ("hello",)


@pytest.mark.parametrize("content", ['{"timestamp": 1, "input_length": 9, "output_length": 9}\n', "TIMESTAMP,a,b\n1,2,3\n", ""])
def test_a_trace_of_lengths_has_no_texts(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace"
    path.write_text(content)
    assert sample_trace(path, str) == ()


def test_how_like_production_the_calibration_is() -> None:
    split = split_prompts(texts(60), None, tokenize, prompts=512, held_out=20, tokens=25)
    found = describe_calibration(split.calibration, split, [10, 20, 90], tokens=25)
    assert (found.prompts, found.tokens, found.length_p50) == (40, 1000, 25)
    assert (found.production_p50, found.production_p95) == (20, 25)
    far = describe_calibration([(1, 2, 3)] * 9, split, (), tokens=25)
    assert far.distance == 1.0 and far.unseen_pct == 100.0 and far.production_p50 is None


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AdvisorError, match="no prompts"):
        read_prompts(_file(tmp_path / "p.jsonl", ""), str)


def test_nothing_leaks_from_the_evaluation_into_the_calibration() -> None:
    given_texts = texts(60)
    nearly = [text.replace("w0 ", "W0  ").upper() for text in given_texts[:30]] + [
        f"{text} and more" for text in given_texts[30:]
    ]
    split = split_prompts([*given_texts, *nearly], None, tokenize, prompts=512, held_out=20, tokens=100)
    assert split.duplicates == 60 and len(split.evaluation) == 20 and len(split.calibration) == 40
    assert not {each[:25] for each in split.evaluation} & {each[:25] for each in split.calibration}


def test_production_judges_and_keeps_its_doubles_out_of_the_calibration() -> None:
    production = texts(40)
    split = split_prompts([*texts(30, start=500), *production[:10]], production, tokenize, prompts=100, held_out=16, tokens=100)
    mine = {tuple(tokenize(text)) for text in production}
    assert set(split.evaluation) <= mine and set(split.reserve) <= mine
    assert not set(split.calibration) & mine and len(split.calibration) == 30
    assert len(split.evaluation) == 16 and len(split.reserve) == 24


def test_a_template_that_all_share_does_not_make_them_doubles() -> None:
    template = " ".join(f"you are a helpful assistant rule {n}" for n in range(40))
    split = split_prompts([f"{template} {text}" for text in texts(40)], None, tokenize, prompts=100, held_out=10, tokens=500)
    assert split.duplicates == 0 and len(split.calibration) == 30


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    given_texts = texts(40)
    one, two, other = (
        split_prompts(each, None, tokenize, prompts=20, held_out=10, tokens=100, seed=seed)
        for each, seed in ((given_texts, 1), (given_texts[::-1], 1), (given_texts, 2))
    )
    assert one == two and set(one.evaluation) != set(other.evaluation)


@pytest.mark.parametrize("few", [[], texts(1), ["too short"] * 50])
def test_too_few_prompts_are_refused(few: list[str]) -> None:
    with pytest.raises(AdvisorError, match="too few"):
        split_prompts(few, None, tokenize, prompts=10, held_out=10, tokens=100)


@given(st.lists(st.integers(SHORTEST, 400), min_size=1, max_size=40), st.lists(st.integers(1, 500), max_size=40))
@settings(max_examples=60, deadline=None)
def test_lengths_follow_production_and_nothing_is_made_longer(sizes: list[int], wanted: list[int]) -> None:
    prompts = [tuple(range(size)) for size in sizes]
    matched = match_lengths(prompts, wanted)
    assert len(matched) == len(prompts)
    for before, after in zip(prompts, matched, strict=True):
        assert after == before[: len(after)] and (not wanted or len(after) <= max(SHORTEST, *wanted))


def test_lengths_take_the_quantiles() -> None:
    matched = match_lengths([tuple(range(100))] * 4, [10, 20, 30, 40])
    assert sorted(map(len, matched)) == [10, 20, 30, 40]


counts = st.dictionaries(st.integers(0, 20), st.integers(1, 50), min_size=1).map(Counter)


@given(counts, counts)
@settings(max_examples=100, deadline=None)
def test_jensen_shannon_is_a_symmetric_figure_between_0_and_1(one: Counter[int], other: Counter[int]) -> None:
    found = jensen_shannon(one, other)
    assert (
        0 <= found <= 1 and found == pytest.approx(jensen_shannon(other, one)) and jensen_shannon(one, one) == pytest.approx(0)
    )


def test_jensen_shannon_by_hand() -> None:
    assert jensen_shannon(Counter({1: 1}), Counter({2: 1})) == pytest.approx(1)
    # p = (1/2, 1/2), q = (1, 0): H(3/4, 1/4) - 1/2
    assert jensen_shannon(Counter({1: 1, 2: 1}), Counter({1: 5})) == pytest.approx(0.8112781 - 0.5)


def test_the_distance_takes_chance_out() -> None:
    draw = random.Random(0)
    same = [[draw.randrange(5000) for _ in range(60)] for _ in range(40)]
    assert jensen_shannon(Counter(t for p in same[:20] for t in p), Counter(t for p in same[20:] for t in p)) > 0.5
    assert (token_distance(same[:20], same[20:]) or 0) < 0.1
    other = [[token + 5000 for token in prompt] for prompt in same]
    assert token_distance(same[:20], other[:20]) == pytest.approx(1)
    half = [[token + 5000 * (index % 2) for index, token in enumerate(prompt)] for prompt in same]
    assert 0.2 < (token_distance(same[:20], half[20:]) or 0) < 0.8
    assert token_distance([], same) is None
