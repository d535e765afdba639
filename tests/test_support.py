"""The support tables: which cell wins, versions that compare, and tables that are wrong."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from advisor import library
from advisor.errors import RuleProblem
from advisor.reasoner import support
from advisor.reasoner.support import FORMATS, cells, lookup, parse_cells, parse_version

GENERAL = {"kind": "weights", "format": "fp8", "support": "fallback", "source": "a page", "date": "2026-01-01"}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A table to fill; the cache is emptied around it."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(library, "profile", lambda kind, name: rows if (kind, name) == ("support", "tensorrt-llm") else None)
    monkeypatch.setattr(support, "cells", cells.__wrapped__)
    return rows


def ask(version: str = "1.2.1", sm: int | None = 90, kind: Any = "weights", form: str = "fp8") -> tuple[str, str]:
    return lookup("tensorrt-llm", version, sm, kind, form)


def test_nothing_found_is_unknown(table: list[dict[str, Any]]) -> None:
    assert ask() == ("unknown", "no cell")
    assert lookup("vllm", "0.10.0", 90, "weights", "fp8") == ("unknown", "no cell")
    table.append(GENERAL)
    assert ask(kind="kv_cache") == ("unknown", "no cell")
    assert ask(form="nvfp4") == ("unknown", "no cell")
    assert ask(version="main") == ("unknown", "'main' is not a version number")


def test_the_answer_says_who_says_so(table: list[dict[str, Any]]) -> None:
    table.append({**GENERAL, "note": "with Marlin"})
    assert ask() == ("fallback", "a page (2026-01-01): with Marlin")


def test_the_more_particular_cell_wins_wherever_it_stands(table: list[dict[str, Any]]) -> None:
    table += [
        {**GENERAL, "sm": [89, 90], "support": "native"},
        {**GENERAL, "version": "1.2.1", "support": "impossible"},
        {**GENERAL, "version": ">=1.0,<2"},
        GENERAL,
    ]
    assert ask()[0] == "native", "an SM beats a version"
    assert ask(sm=80)[0] == "impossible", "one version beats a range"
    assert ask(sm=None)[0] == "impossible", "an SM that is not known matches cells for every GPU only"
    assert ask(sm=80, version="1.3")[0] == "fallback"
    table.append({**GENERAL, "sm": [90], "version": "1.2.1", "support": "unknown"})
    assert ask()[0] == "unknown", "a recorded dispute beats a more general cell"


def test_of_equals_the_last_wins(table: list[dict[str, Any]]) -> None:
    table += [{**GENERAL, "sm": [90], "support": "native"}, {**GENERAL, "sm": [90, 100], "support": "impossible"}]
    assert ask()[0] == "impossible"


def test_a_cell_may_list_formats(table: list[dict[str, Any]]) -> None:
    table.append({**GENERAL, "format": ["int4_awq", "int4_gptq"]})
    assert ask(form="int4_gptq")[0] == "fallback" and ask(form="fp8")[0] == "unknown"


RANGES = [
    (">=1.0,<1.4", "1.0", True),
    (">=1.0,<1.4", "1.3.9", True),
    (">=1.0,<1.4", "1.4.0", False),
    (">=1.0,<1.4", "1.4.0rc2", True),
    (">=1.3", "1.3.0rc20", False),
    (">1.2", "1.2.0.post1", True),
    ("<=1.2", "1.2.0", True),
    ("==1.2.1", "1.2.1", True),
    ("1.2", "1.2.0", True),
    ("!=1.2.1,>1", "1.2.1", False),
    (">=0.10", "0.9.2", False),
    (">=0.10", "v0.11.0+cu128", True),
]


@pytest.mark.parametrize(("clauses", "version", "covered"), RANGES)
def test_version_ranges(table: list[dict[str, Any]], clauses: str, version: str, covered: bool) -> None:
    table.append({**GENERAL, "version": clauses})
    assert (ask(version=version)[0] == "fallback") is covered


def test_versions_are_ordered_as_releases_are() -> None:
    order = ["1.3.0.dev4", "1.3.0a1", "1.3.0b1", "1.3.0rc2", "1.3.0rc20", "1.3", "1.3.0.post1", "1.3.1", "1.10"]
    parsed = [parse_version(text) for text in order]
    assert None not in parsed and parsed == sorted(parsed, key=lambda version: version or ((), 0, 0))
    assert parse_version("latest") is None and parse_version("") is None


WRONG = [
    ({"kind": "weight"}, "unknown kind", "weights"),
    ({"format": "fp9"}, "unknown weights format", "fp8"),
    ({"support": "partly"}, "unknown support", "native"),
    ({"sm": 90}, "list of whole numbers", "9.0"),
    ({"sm": ["90"]}, "list of whole numbers", "9.0"),
    ({"version": 1.1}, "is not text", "quotes"),
    ({"version": "about 1"}, "not understood", ">=1.0"),
    ({"comment": "x"}, "unknown key", "note"),
]


@pytest.mark.parametrize(("change", "what", "hint"), WRONG)
def test_a_wrong_cell_is_named(change: dict[str, Any], what: str, hint: str) -> None:
    with pytest.raises(RuleProblem, match=what) as caught:
        list(parse_cells([GENERAL, {**GENERAL, **change}], where="profiles/support/x.yaml"))
    assert caught.value.where == "profiles/support/x.yaml, cell 2" and hint in caught.value.hint


@pytest.mark.parametrize("key", sorted(GENERAL))
def test_a_cell_without_a_key_is_named(key: str) -> None:
    with pytest.raises(RuleProblem, match=f"'{key}' is missing"):
        list(parse_cells([{name: value for name, value in GENERAL.items() if name != key}], where="x"))


def test_a_table_is_a_list() -> None:
    for table in ({"cells": []}, "x", [["fp8"]]):
        with pytest.raises(RuleProblem):
            list(parse_cells(table, where="x"))


@pytest.mark.parametrize("engine", library.profile_names("support"))
def test_the_shipped_tables_can_be_read(engine: str) -> None:
    for cell in cells(engine):
        assert cell.source.strip(), cell
        assert date.fromisoformat(cell.date.removeprefix("read ")) <= date.today(), cell


@pytest.mark.parametrize("engine", library.profile_names("support"))
def test_the_shipped_tables_answer_for_the_gpus_of_today(engine: str) -> None:
    version = {"tensorrt-llm": "1.2.1", "vllm": "0.10.0"}[engine]
    asked = [(kind, form) for kind in ("weights", "kv_cache") for form in FORMATS[kind]]
    answered = [pair for pair in asked if lookup(engine, version, 90, pair[0], pair[1])[1] != "no cell"]  # type: ignore[arg-type]
    assert len(answered) > len(asked) / 2
