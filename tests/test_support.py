"""The support tables: complete, every cell with a source, and true to the facts they were made from."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from advisor.errors import RuleProblem
from advisor.library import PROFILES, profile_names
from advisor.reasoner.support import FORMATS, cells, lookup, parse_cells, parse_version
from advisor.types import Engine

MATRIX = Path(__file__).parents[1].parent / "shared" / "facts" / "trtllm" / "support_matrix.md"
SMS = (70, 75, 80, 86, 89, 90, 100, 103, 120, 121)
VERSIONS = {"tensorrt-llm": ("0.18.2", "1.0.0", "1.2.1", "1.3.0rc20", "1.3.0"), "vllm": ("0.9.2", "0.11.2", "0.25.1", "0.32.0")}
ENGINES = tuple(VERSIONS)
COLUMNS = {
    "NVFP4": ("weights", "nvfp4"),
    "MXFP4": ("weights", "mxfp4"),
    "FP8 per-tensor": ("weights", "fp8"),
    "FP8 block": ("weights", "fp8_block"),
    "FP8 rowwise": ("weights", "fp8_rowwise"),
    "FP8 KV": ("kv_cache", "fp8"),
    "NVFP4 KV": ("kv_cache", "nvfp4"),
    "W4A8 AWQ": ("weights", "w4a8_awq"),
    "W4A16 AWQ": ("weights", "int4_awq"),
    "W4A16 GPTQ": ("weights", "int4_gptq"),
}


def ask(engine: str, version: str, sm: int | None, kind: str, name: str) -> str:
    return lookup(engine, version, sm, kind, name)[0]  # type: ignore[arg-type]


def test_the_engines_to_plan_for_have_a_table() -> None:
    """SGLang can be estimated (`advise predict`) and has none: everything about it is unknown."""
    assert set(profile_names("support")) == set(ENGINES) == set(get_args(Engine.model_fields["name"].annotation)) - {"sglang"}
    assert lookup("sglang", "0.5", 90, "weights", "fp8") == ("unknown", "no cell")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_question_has_an_answer_with_a_source(engine: str) -> None:
    for version, sm, (kind, names) in product(VERSIONS[engine], (*SMS, None), FORMATS.items()):
        for name in names:
            support, source = lookup(engine, version, sm, kind, name)  # type: ignore[arg-type]
            assert source != "no cell", f"{engine} {version} SM{sm} {kind} {name}"
            assert support in ("native", "fallback", "impossible", "unknown")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_cell_says_who_and_when(engine: str) -> None:
    for cell in cells(engine):
        assert re.search(
            r"https://|@ [0-9a-f]{8}|gh-pages [0-9a-f]{8}|pull request \d+|issues? \d+|\.py|blog|arguments|KvCacheConfig",
            cell.source,
        )
        assert re.fullmatch(r"(read )?20\d\d-\d\d-\d\d", cell.date), cell
        if cell.support in ("fallback", "unknown"):
            assert cell.note, f"{cell} does not say what the fallback or the doubt is"


@pytest.mark.parametrize("engine", ENGINES)
def test_no_cell_is_dead(engine: str) -> None:
    """Each cell answers some question; one that never does is a mistake in the order or in the versions."""
    versions = (*VERSIONS[engine], "0.10.0", "0.17")
    answers = {
        lookup(engine, version, sm, kind, name)[1]  # type: ignore[arg-type]
        for version, sm, (kind, names) in product(versions, (*SMS, None), FORMATS.items())
        for name in names
    }
    assert [cell for cell in cells(engine) if cell.citation not in answers] == []


@pytest.mark.skipif(not MATRIX.exists(), reason="the collected facts are not part of the project")
def test_the_tensorrt_llm_table_is_the_published_one() -> None:
    """Every Y and every dot of the hardware table of release 1.2.1, except where another source disputes it."""
    text = MATRIX.read_text(encoding="utf-8").split("## 1.")[1].split("###")[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line.startswith("|")]
    header, checked = rows[0], 0
    for row in rows[2:]:
        sms = [int(number) for number in re.findall(r"\d+", row[0].split("(")[0])]
        for title, mark in zip(header[1:], row[1:], strict=True):
            if title not in COLUMNS:
                assert title == "W4A8 GPTQ"
                continue
            for sm in sms:
                kind, name = COLUMNS[title]
                answer = ask("tensorrt-llm", "1.2.1", sm, kind, name)
                expected = "native" if mark == "Y" else "impossible"
                if (sm, kind, name) == (80, "kv_cache", "fp8"):
                    expected = "unknown"
                if (sm, name) == (90, "mxfp4"):
                    expected = "fallback"
                assert answer == expected, f"SM{sm} {title}"
                checked += 1
    assert checked == 60


@pytest.mark.parametrize("sm", [80, 86])
def test_nothing_fp8_is_promised_on_ampere(sm: int) -> None:
    for version in VERSIONS["tensorrt-llm"][1:]:
        assert {
            ask("tensorrt-llm", version, sm, "weights", name) for name in ("fp8", "fp8_rowwise", "fp8_block", "w4a8_awq")
        } == {"impossible"}
        support, source = lookup("tensorrt-llm", version, sm, "kv_cache", "fp8")
        assert support == "unknown" and "against" in source
        assert ask("tensorrt-llm", version, sm, "weights", "int4_awq") == "native"
    assert ask("vllm", "0.32.0", sm, "weights", "fp8") == "fallback"
    assert ask("vllm", "0.32.0", sm, "kv_cache", "fp8") == "unknown"


def test_int8_is_where_the_backend_has_it() -> None:
    for version in ("1.2.1", "1.3.0rc20"):
        assert {ask("tensorrt-llm", version, sm, "weights", "int8_sq") for sm in SMS} == {"impossible"}
        assert {ask("tensorrt-llm", version, sm, "kv_cache", "int8") for sm in SMS} == {"impossible"}
    assert ask("tensorrt-llm", "0.18.2", 80, "weights", "int8_sq") == "native"
    assert ask("tensorrt-llm", "0.18.2", 80, "kv_cache", "int8") == "native"
    assert ask("vllm", "0.32.0", 80, "weights", "int8_sq") == "native"
    assert ask("vllm", "0.32.0", 100, "weights", "int8_sq") == "impossible"


def test_fp4_needs_blackwell_to_compute_and_vllm_to_fall_back() -> None:
    for sm in (80, 89, 90):
        assert ask("tensorrt-llm", "1.2.1", sm, "weights", "nvfp4") == "impossible"
        assert ask("vllm", "0.32.0", sm, "weights", "nvfp4") == "fallback"
    assert {ask(engine, VERSIONS[engine][-1], 120, "weights", "nvfp4") for engine in ENGINES} == {"native"}
    native = [sm for sm in SMS if ask("tensorrt-llm", "1.2.1", sm, "kv_cache", "nvfp4") == "native"]
    assert native == [100, 103]


def test_support_follows_the_release() -> None:
    assert ask("tensorrt-llm", "1.1.0", 100, "weights", "int4_awq") == "impossible"
    assert ask("tensorrt-llm", "1.2.0", 100, "weights", "int4_awq") == "native"
    assert ask("vllm", "0.10.0", 90, "speculation", "draft") == "impossible"
    assert ask("vllm", "0.10.1", 90, "speculation", "draft") == "native"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_gpu_promises_nothing_and_forbids_nothing(engine: str) -> None:
    narrow = [name for name in FORMATS["weights"] if name not in ("bf16", "int8_sq", "int8_wo")]
    assert {ask(engine, VERSIONS[engine][-1], sm, "weights", name) for sm in (None, 130) for name in narrow} == {"unknown"}


@pytest.mark.parametrize(
    ("text", "older"),
    [("1.3.0rc20", "1.2.1"), ("1.3.0", "1.3.0rc20"), ("1.10", "1.9.3"), ("1.3.0rc20", "1.3.0rc3"), ("1.2.1.post1", "1.2.1")],
)
def test_versions_have_an_order(text: str, older: str) -> None:
    newer, before = parse_version(text), parse_version(older)
    assert newer is not None and before is not None and newer > before


def test_a_version_that_is_none_is_unknown() -> None:
    assert lookup("vllm", "nightly", 90, "weights", "fp8")[0] == "unknown"


def test_the_more_special_cell_wins_and_then_the_later() -> None:
    plain = {"kind": "weights", "format": "fp8", "source": "x @ 00000000", "date": "2026-01-01"}
    table = [
        plain | {"sm": [90], "support": "native"},
        plain | {"version": ">=1", "support": "fallback"},
        plain | {"version": "1.2", "support": "unknown"},
        plain | {"support": "impossible"},
    ]
    found = sorted(parse_cells(table, where="t"), key=lambda cell: cell.precedence)
    assert [cell.support for cell in found] == ["impossible", "fallback", "unknown", "native"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"suport": "native"}, "unknown key 'suport'"),
        ({"source": None}, "the key 'source' is missing"),
        ({"format": "fp9"}, "unknown weights format 'fp9'"),
        ({"sm": 90}, "sm is a list"),
        ({"version": 1.1}, "is not text"),
        ({"version": ">= one"}, "is not understood"),
        ({"support": "yes"}, "unknown support 'yes'"),
    ],
)
def test_a_broken_cell_is_named(change: dict[str, object], what: str) -> None:
    cell = {"kind": "weights", "format": "fp8", "support": "native", "source": "x", "date": "2026-01-01"} | change
    cell = {key: value for key, value in cell.items() if value is not None}
    with pytest.raises(RuleProblem, match=re.escape(what)) as caught:
        list(parse_cells([cell], where="table.yaml"))
    assert "table.yaml, cell 1" in str(caught.value)


def test_the_tables_are_short_enough_to_read() -> None:
    for path in (PROFILES / "support").glob("*.yaml"):
        assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 160, path
