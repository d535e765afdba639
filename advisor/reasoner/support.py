"""What an engine, in a version, can do on a GPU: the tables of profiles/support.

Sources disagree about support and it changes with every release, so it is knowledge kept as data. One file an engine,
profiles/support/<engine>.yaml (tensorrt-llm.yaml, vllm.yaml): a list of cells, each with these keys, in this order

    - kind: weights              # weights | kv_cache | speculation | feature
      format: fp8                # or a list: [fp8, fp8_rowwise]. A name of types.WeightFormat, KvFormat or
                                 # SpeculationMethod; for a feature one of FEATURES below
      version: ">=1.0,<1.4"      # or "1.2.1"; clauses < <= > >= == != joined by commas all hold; left out: every version
      sm: [89, 90, 100, 103]     # compute capabilities without the dot; left out: every GPU
      support: native            # native | fallback (works, slower) | impossible | unknown
      source: https://…          # where it is said: an address, or repository/path @ commit
      date: 2026-08-21           # when that was published or read
      note: one sentence         # optional: a dispute, a condition, what the fallback is

Of the cells that match, one that names the SM beats one for every GPU; then one that names exactly one version beats a range,
and a range beats every version; then the last in the file wins (general cells first, exceptions below). A cell `unknown`
records a dispute: it beats a more general `native`. Nothing matches: unknown, and the source is "no cell".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from advisor import library
from advisor.errors import RuleProblem
from advisor.types import KvFormat, SpeculationMethod, Support, WeightFormat

Kind = Literal["weights", "kv_cache", "speculation", "feature"]
FEATURES = (
    "in_flight_batching",
    "static_batching",
    "chunked_prefill",
    "prefix_reuse",
    "cuda_graphs",
    "attention_dp",
    "expert_parallel",
    "max_utilization",
)
FORMATS: dict[str, tuple[str, ...]] = {
    "weights": get_args(WeightFormat),
    "kv_cache": get_args(KvFormat),
    "speculation": get_args(SpeculationMethod),
    "feature": FEATURES,
}
KEYS = ("kind", "format", "version", "sm", "support", "source", "date", "note")
_OPTIONAL = frozenset(("version", "sm", "note"))
_STAGES = {"dev": -4, "a": -3, "alpha": -3, "b": -2, "beta": -2, "rc": -1, "": 0, "post": 1}
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)(?:[.-]?(dev|alpha|a|beta|b|rc|post)\.?(\d*))?(?:\+.*)?")
_CLAUSE = re.compile(r"\s*(<=|>=|==|!=|<|>)?\s*(\S+)\s*")
Version = tuple[tuple[int, ...], int, int]


class Cell(NamedTuple):
    """One statement of a support table."""

    kind: Kind
    formats: tuple[str, ...]
    clauses: tuple[tuple[str, Version], ...]
    """(operator, version); empty: every version"""
    sms: tuple[int, ...] | None
    """None: every GPU"""
    support: Support
    source: str
    date: str
    note: str

    @property
    def precedence(self) -> tuple[bool, bool, bool]:
        """The larger wins over the smaller."""
        exact = len(self.clauses) == 1 and self.clauses[0][0] == "=="
        return self.sms is not None, exact, bool(self.clauses)

    @property
    def citation(self) -> str:
        """Source, date and note in one line."""
        return f"{self.source} ({self.date})" + (f": {self.note}" if self.note else "")


def lookup(engine: str, version: str, sm: int | None, kind: Kind, format: str) -> tuple[Support, str]:
    """What `engine` in `version` makes of a format, method or feature on compute capability `sm`, and who says so.

    An sm that is not known matches the cells for every GPU only. Raises RuleProblem when the table itself is broken.
    """
    number = parse_version(version)
    if number is None:
        return "unknown", f"{version!r} is not a version number"
    matching = [cell for cell in cells(engine) if cell.kind == kind and format in cell.formats and _covers(cell, number, sm)]
    if not matching:
        return "unknown", "no cell"
    _, best = max(enumerate(matching), key=lambda pair: (pair[1].precedence, pair[0]))
    return best.support, best.citation


def parse_version(text: str) -> Version | None:
    """A version as something that compares: (release without trailing zeros, stage, number); None: not a version.

    The order is that of PEP 440 for the forms that engines use: 1.3.0rc20 < 1.3.0 < 1.3.0.post1, and 1.2 == 1.2.0.
    """
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        return None
    release = tuple(int(part) for part in match[1].split("."))
    while release and release[-1] == 0:
        release = release[:-1]
    return release, _STAGES[match[2] or ""], int(match[3] or 0)


@cache
def cells(engine: str) -> tuple[Cell, ...]:
    """The table of an engine; empty when there is none. Raises RuleProblem."""
    table = library.profile("support", engine)
    if table is None:
        return ()
    return tuple(parse_cells(table, where=f"profiles/support/{engine}.yaml"))


def parse_cells(table: Any, *, where: str) -> Iterator[Cell]:
    """The cells of a table's plain data. Raises RuleProblem, naming the cell by its position."""
    if not isinstance(table, list):
        raise RuleProblem("a support table is a list of cells", where=where, hint="see advisor/reasoner/support.py")
    for position, cell in enumerate(table, start=1):
        yield _parse_cell(cell, f"{where}, cell {position}")


def _parse_cell(cell: Any, where: str) -> Cell:
    if not isinstance(cell, Mapping):
        raise RuleProblem("a cell is a mapping", where=where, hint=f"its keys: {', '.join(KEYS)}")
    for key in cell:
        if key not in KEYS:
            raise RuleProblem(f"unknown key {key!r}", where=where, hint=f"the keys of a cell: {', '.join(KEYS)}")
    for key in KEYS:
        if key not in cell and key not in _OPTIONAL:
            raise RuleProblem(f"the key {key!r} is missing", where=where, hint="every cell says what, who says so, and when")
    kind, support = cell["kind"], cell["support"]
    if kind not in FORMATS:
        raise RuleProblem(f"unknown kind {kind!r}", where=where, hint=f"one of {', '.join(FORMATS)}")
    if support not in get_args(Support):
        raise RuleProblem(f"unknown support {support!r}", where=where, hint=f"one of {', '.join(get_args(Support))}")
    formats = tuple(cell["format"]) if isinstance(cell["format"], list) else (cell["format"],)
    for name in formats:
        if name not in FORMATS[kind]:
            raise RuleProblem(f"unknown {kind} format {name!r}", where=where, hint=f"one of {', '.join(FORMATS[kind])}")
    sms = cell.get("sm")
    if sms is not None and not (isinstance(sms, list) and sms and all(type(sm) is int for sm in sms)):
        raise RuleProblem("sm is a list of whole numbers", where=where, hint="90 is compute capability 9.0")
    return Cell(
        kind=kind,
        formats=formats,
        clauses=_parse_clauses(cell.get("version"), where),
        sms=None if sms is None else tuple(sms),
        support=support,
        source=str(cell["source"]),
        date=str(cell["date"]),
        note=str(cell.get("note", "")),
    )


def _parse_clauses(version: Any, where: str) -> tuple[tuple[str, Version], ...]:
    if version is None:
        return ()
    if not isinstance(version, str):
        raise RuleProblem(f"version {version!r} is not text", where=where, hint="put it in quotes: 1.10 without them is 1.1")
    clauses = []
    for text in version.split(","):
        match = _CLAUSE.fullmatch(text)
        number = parse_version(match[2]) if match else None
        if match is None or number is None:
            raise RuleProblem(f"version {version!r} is not understood", where=where, hint='like "1.2.1" or ">=1.0,<1.4"')
        clauses.append((match[1] or "==", number))
    return tuple(clauses)


def _covers(cell: Cell, version: Version, sm: int | None) -> bool:
    if cell.sms is not None and sm not in cell.sms:
        return False
    return all(_holds(version, operator, bound) for operator, bound in cell.clauses)


def _holds(version: Version, operator: str, bound: Version) -> bool:
    if operator == "==":
        return version == bound
    if operator == "!=":
        return version != bound
    if operator[0] == "<":
        return version < bound or (operator == "<=" and version == bound)
    return version > bound or (operator == ">=" and version == bound)
