"""The rows of a request trace: CSV or JSON lines, plain or gzip, read one at a time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, TextIO, cast

from advisor.errors import FileProblem, TrafficProblem
from advisor.library import profile

LONGEST_LINE = 2**20
LONGEST = 10_000_000
"""tokens of one request"""

_UNITS = {"_ns": 1e-9, "_us": 1e-6, "_ms": 1e-3, "_seconds": 1.0, "_sec": 1.0, "_s": 1.0}
_WHAT = {"arrival": "arrival time", "isl": "input tokens", "osl": "output tokens"}


class Row(NamedTuple):
    """One request. `arrival` and `end` are in Columns.unit (seconds for dates), `latency` in Columns.latency_unit."""

    line: int
    arrival: float
    isl: int
    osl: int
    blocks: Sequence[int | str] | None
    end: float | None
    latency: float | None


@dataclass
class Columns:
    """Which columns a trace has, and in what unit its times are; None: not said by the name."""

    name: str
    found: dict[str, str]
    unit: float | None = None
    end_unit: float | None = None
    latency_unit: float | None = None

    @property
    def mooncake(self) -> bool:
        """The Mooncake trace's column names, whose whole numbers are milliseconds."""
        return [self.found[key].lower() for key in ("arrival", "isl", "osl")] == ["timestamp", "input_length", "output_length"]


@contextmanager
def open_trace(path: str) -> Iterator[tuple[Columns, Iterator[Row]]]:
    """The columns of a trace and its rows, read as they are asked for. "-" is standard input.

    Raises FileProblem when it can't be read, TrafficProblem with file:line at the first row that is not a request.
    """
    name = "standard input" if path == "-" else path
    with _opened(path, name) as file:
        lines = _lines(file, name)
        first = next((pair for pair in lines if pair[1].strip()), None)
        if first is None:
            raise TrafficProblem("this trace is empty", where=name, hint="give a CSV with a header, or one JSON object a line")
        number, text = first
        if text.lstrip().startswith("{"):
            yield _json_rows(number, text, lines, name)
        elif text.lstrip().startswith("["):
            raise TrafficProblem(
                "this is a JSON list", where=f"{name}:{number}", hint="write one object a line (jq -c '.[]' makes that of it)"
            )
        else:
            yield _csv_rows(number, text, lines, name)


def time_of(value: Any) -> float:
    """A time: a finite number, or an ISO 8601 date (as seconds since 1970; without a zone: UTC). Raises ValueError."""
    if type(value) is str:
        text = value.strip()
        try:
            number = float(text)
        except ValueError:
            return _date(text)
        if "_" in text:
            raise ValueError(value)
    elif type(value) in (int, float):
        number = value
    else:
        raise ValueError(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def tokens_of(value: Any) -> int:
    """A number of tokens: whole, not negative, at most LONGEST. Raises ValueError."""
    if type(value) is str:
        try:
            number = int(value)
        except ValueError:
            exact = float(value)
            number = int(exact) if math.isfinite(exact) and exact == int(exact) else -1
        if "_" in value:
            raise ValueError(value)
    elif type(value) is int:
        number = value
    elif type(value) is float and math.isfinite(value) and value == int(value):
        number = int(value)
    else:
        raise ValueError(value)
    if not 0 <= number <= LONGEST:
        raise ValueError(value)
    return number


_DATE = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?(?:(Z)|([+-]\d\d):?(\d\d))?", re.ASCII)


def _date(text: str) -> float:
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    day, clock, fraction, _, hours, minutes = match.groups()
    return _second(day, clock, f"{hours}:{minutes}" if hours else "+00:00") + (float(fraction) if fraction else 0.0)


@lru_cache(maxsize=64)
def _second(day: str, clock: str, zone: str) -> float:
    return datetime.fromisoformat(f"{day}T{clock}{zone}").timestamp()


@contextmanager
def _opened(path: str, name: str) -> Iterator[TextIO]:
    try:
        if path == "-":
            raw: io.BufferedReader = sys.stdin.buffer  # type: ignore[assignment]
        elif not Path(path).is_file() and not Path(path).is_fifo():
            raise FileProblem(
                "this trace is not a file", where=name, hint="give the path of a CSV or JSONL file, or - for standard input"
            )
        else:
            raw = Path(path).open("rb")  # noqa: SIM115 (closed below, unless it is standard input)
        with raw if path != "-" else nullcontext():
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if zipped else raw)
            text = io.TextIOWrapper(cast(BinaryIO, plain), encoding="utf-8-sig", newline="")
            try:
                yield text
            finally:
                text.detach()
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise TrafficProblem(f"this is not a whole gzip file: {error}", where=name, hint="fetch or pack it again") from None
        raise FileProblem(
            f"this trace cannot be read: {error.strerror}", where=name, hint="check the path and its permissions"
        ) from None
    except (EOFError, zlib.error) as error:
        raise TrafficProblem(f"this gzip file breaks off: {error}", where=name, hint="fetch or pack it again") from None


def _lines(file: TextIO, name: str) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        while text := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(text) > LONGEST_LINE:
                raise TrafficProblem(
                    f"a line of more than {LONGEST_LINE:,} characters",
                    where=f"{name}:{number}",
                    hint="a trace has one request a line; check that this is one",
                )
            if "\0" in text:
                raise _binary(name, number)
            yield number, text
    except UnicodeDecodeError:
        raise _binary(name, number + 1) from None


def _binary(name: str, line: int) -> TrafficProblem:
    return TrafficProblem(
        "this is not UTF-8 text",
        where=f"{name}:{line}",
        hint="a trace is CSV or JSON lines in UTF-8, plain or gzip; convert it",
    )


def _columns(names: Sequence[str], where: str, name: str) -> Columns:
    plain: dict[str, str] = {}
    for column in names:
        plain.setdefault(column.strip().lower().replace(" ", "_").replace("-", "_").replace(".", "_"), column)
    columns = Columns(name=name, found={})
    names_of: Mapping[str, list[str]] = profile("traffic", "_columns") or {}
    for fact, known in names_of.items():
        for candidate in known:
            if candidate in plain:
                columns.found[fact] = plain[candidate]
                break
            suffix = (
                next((s for s in _UNITS if candidate + s in plain), None) if fact in ("arrival", "end", "latency") else None
            )
            if suffix:
                columns.found[fact] = plain[candidate + suffix]
                unit = _UNITS[suffix]
                if fact == "arrival":
                    columns.unit = unit
                elif fact == "end":
                    columns.end_unit = unit
                else:
                    columns.latency_unit = unit
                break
    missing = [fact for fact in _WHAT if fact not in columns.found]
    if missing:
        wanted = "; ".join(f"{_WHAT[fact]}: {', '.join(names_of[fact][:5])}" for fact in missing)
        shown = ", ".join(str(n)[:30] for n in names[:12])
        raise TrafficProblem(
            f"no column for {' or '.join(_WHAT[fact] for fact in missing)} among: {shown}",
            where=where,
            hint=f"name the columns as one of these does: {wanted}",
        )
    return columns


def _json_rows(number: int, text: str, lines: Iterator[tuple[int, str]], name: str) -> tuple[Columns, Iterator[Row]]:
    def parsed(line: int, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else "not JSON"
            raise TrafficProblem(
                f"this line is not JSON: {problem}", where=f"{name}:{line}", hint="write one JSON object a line, or give a CSV"
            ) from None
        if not isinstance(value, dict):
            raise TrafficProblem("this line is not a JSON object", where=f"{name}:{line}", hint="write one object a line")
        return value

    first = parsed(number, text)
    columns = _columns(list(first), f"{name}:{number}", name)

    def values() -> Iterator[tuple[int, dict[str, Any]]]:
        yield number, first
        for line, more in lines:
            if not more.isspace():
                yield line, parsed(line, more)

    return columns, _rows(columns, values())


def _csv_rows(number: int, text: str, lines: Iterator[tuple[int, str]], name: str) -> tuple[Columns, Iterator[Row]]:
    delimiter = max(",\t;|", key=text.count)
    at = number

    def texts() -> Iterator[str]:
        nonlocal at
        yield text
        for at, more in lines:  # noqa: B007 (the reader may take several lines for one row)
            yield more

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)

    def fields() -> Iterator[list[str]]:
        try:
            yield from reader
        except csv.Error as error:
            raise TrafficProblem(f"this is not CSV: {error}", where=f"{name}:{at}", hint="mend that line") from None

    rows = fields()
    header = next(rows)
    columns = _columns(header, f"{name}:{number}", name)
    places = {fact: header.index(column) for fact, column in columns.found.items()}
    width = len(header)

    def values() -> Iterator[tuple[int, dict[str, Any]]]:
        for row in rows:
            if len(row) != width:
                if not row:
                    continue
                raise TrafficProblem(
                    f"{len(row)} fields where the header has {width}", where=f"{name}:{at}", hint="mend that line"
                )
            yield at, {columns.found[fact]: row[place] for fact, place in places.items()}

    return columns, _rows(columns, values())


def _rows(columns: Columns, values: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    arrival, isl, osl = (columns.found[fact] for fact in ("arrival", "isl", "osl"))
    blocks, end, latency = (columns.found.get(fact) for fact in ("blocks", "end", "latency"))
    line = 0
    for line, row in values:
        try:
            at = time_of(row[arrival])
            tokens = tokens_of(row[isl])
            answer = tokens_of(row[osl])
            if not tokens:
                raise ValueError(row[isl])
            shared = _blocks(row.get(blocks)) if blocks else None
            ended = time_of(row[end]) if end else None
            took = time_of(row[latency]) if latency else None
        except (KeyError, ValueError, TypeError):
            raise _bad_row(columns, row, line) from None
        yield Row(line, at, tokens, answer, shared, ended, took)


def _blocks(value: Any) -> Sequence[int | str] | None:
    if type(value) is str:
        text = value.strip()
        value = json.loads(text) if text.startswith("[") else text.replace(";", " ").replace("|", " ").split()
    if value is None:
        return None
    if type(value) is list and all(type(block) in (int, str) for block in value):
        return cast(Sequence[int | str], value)
    raise ValueError(value)


def _bad_row(columns: Columns, row: Mapping[str, Any], line: int) -> TrafficProblem:
    where = f"{columns.name}:{line}"
    for fact, read, rule in (
        ("arrival", time_of, "a number, or a date such as 2023-11-16 18:17:03.97"),
        ("isl", tokens_of, f"a whole number from 1 to {LONGEST:,}"),
        ("osl", tokens_of, f"a whole number from 0 to {LONGEST:,}"),
        ("end", time_of, "a number or a date"),
        ("latency", time_of, "a number"),
        ("blocks", _blocks, "a list of whole numbers or strings"),
    ):
        column = columns.found.get(fact)
        if column is None:
            continue
        if column not in row:
            if fact == "blocks":
                continue
            return TrafficProblem(f"this row has no {column}", where=where, hint="each row needs the columns of the first one")
        value = row[column]
        try:
            bad = read(value) == 0 and fact == "isl"
        except (ValueError, TypeError):
            bad = True
        if bad:
            return TrafficProblem(
                f"{column} is {str(value)[:60]!r}, not {rule}",
                where=where,
                hint="mend or remove that row; rows are never skipped",
            )
    return TrafficProblem("this row is not a request", where=where, hint="mend or remove that row")
