"""The requests to serve: a named profile, numbers from flags, a trace, or a server's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem, TrafficProblem, UnknownName
from advisor.library import profile, profile_names
from advisor.profiler.prometheus import is_metrics, read_metrics
from advisor.profiler.trace import read_trace
from advisor.types import Lengths, Traffic

Sources = dict[str, str]
LONGEST = 10_000_000
"""tokens; ten times the longest context window that any model offers"""
MOST_REQUESTS = 1_000_000
"""at once, or per second"""
_TRACE_ENDINGS = (".csv", ".jsonl", ".ndjson", ".json", ".gz", ".txt", ".prom", ".tsv", ".log")


def read_traffic(name_or_path: str) -> tuple[Traffic, Sources]:
    """The traffic that a name, a file, "-" (a trace on standard input) or an http(s) URL of /metrics describes.

    A file is a trace or a saved metrics text; "a.prom,b.prom" are two of those, of one server. read_metrics also returns
    what else the metrics measured.
    A profile's name wins over a file of the same name; write ./chat for the file.
    Raises UnknownName, FileProblem, TrafficProblem.
    """
    name = _profile_name(name_or_path)
    if name is not None:
        return _named(name)
    if name_or_path.startswith(("http://", "https://")):
        return read_metrics(name_or_path)[:2]
    if name_or_path == "-":
        return read_trace("-")
    path = Path(name_or_path)
    there = _exists(path)
    pair = name_or_path.split(",")
    if len(pair) == 2 and not there and all(is_metrics(Path(part)) for part in pair):
        return read_metrics(name_or_path)[:2]
    if not there:
        if len(path.parts) > 1 or name_or_path.lower().endswith(_TRACE_ENDINGS):
            raise FileProblem(
                "there is no such trace", where=name_or_path, hint="check the path; it is taken from the current folder"
            )
        known = profile_names("traffic")
        raise UnknownName("traffic", name_or_path, known, hint=f"known: {', '.join(known)}; or give a trace (CSV or JSONL)")
    if is_metrics(path):
        return read_metrics(name_or_path)[:2]
    return read_trace(name_or_path)


def is_trace(name_or_path: str) -> bool:
    """Whether it is a trace, of which every request is known, that read_traffic would read."""
    if _profile_name(name_or_path) is not None or name_or_path.startswith(("http://", "https://")):
        return False
    path = Path(name_or_path)
    return _exists(path) and not is_metrics(path)


def adjust(
    traffic: Traffic,
    sources: Mapping[str, str],
    *,
    isl: float | None = None,
    osl: float | None = None,
    concurrency: float | None = None,
    rate: float | None = None,
) -> tuple[Traffic, Sources]:
    """Flags over a traffic that is already known: they win, and `sources` says so.

    A length scales the whole distribution to the new mean. A concurrency drops the known rate and the other way round,
    for together they would say two things. Raises TrafficProblem.
    """
    _check(isl=isl, osl=osl, concurrency=concurrency, rate=rate)
    changed: dict[str, Any] = {}
    notes = list(traffic.notes)
    told = dict(sources)
    pairs = traffic.lengths
    for fact, mean, at in (("isl", isl, 0), ("osl", osl, 1)):
        if mean is None:
            continue
        known: Lengths = getattr(traffic, fact)
        factor = mean / known.mean
        changed[fact] = _scaled(known, mean)
        pairs = tuple((_times(a, factor), b) if at == 0 else (a, _times(b, factor)) for a, b in pairs)
        before = told.get(f"traffic.{fact}", traffic.name)
        told[f"traffic.{fact}"] = f"flag --{fact}" + ("; spread as in " + before if known.p99 != known.mean else "")
        notes.append(f"--{fact} {mean:g} scales the lengths of {traffic.name} (mean {known.mean:g}) by {factor:.3g}.")
    if pairs != traffic.lengths:
        changed["lengths"] = pairs
    if concurrency is not None or rate is not None:
        changed |= {"concurrency": _number(concurrency), "rate": _number(rate)}
        fact, dropped, flag = (
            ("rate", traffic.rate, "--concurrency") if rate is None else ("concurrency", traffic.concurrency, "--rate")
        )
        if dropped is not None:
            notes.append(f"The {fact} of {traffic.name}, {dropped:g}, is left out: {flag} replaces it.")
        told.pop("traffic.concurrency", None)
        told.pop("traffic.rate", None)
        told |= _load_sources(concurrency, rate)
    return traffic.model_copy(update=changed | {"notes": tuple(notes)}), told


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _profile_name(name: str) -> str | None:
    lowered = name.lower()
    aliases = profile("traffic", "_aliases") or {}
    lowered = aliases.get(lowered, lowered)
    return lowered if lowered in profile_names("traffic") else None


def _named(name: str) -> tuple[Traffic, Sources]:
    data = profile("traffic", name)
    assert data is not None
    facts = {key: value for key, value in data.items() if key not in ("sources", "notes", "lengths")}
    traffic = Traffic(
        name=name,
        **facts,
        lengths=tuple((a, b) for a, b in data["lengths"]),
        notes=tuple(data["notes"]),
    )
    sources = {
        f"traffic.{fact}": f"profiles/traffic/{name}.yaml, {told['basis']}: {told['source']}"
        for fact, told in data["sources"].items()
    }
    return traffic, sources


def _scaled(lengths: Lengths, mean: float) -> Lengths:
    factor = mean / lengths.mean
    return Lengths(
        mean=mean,
        p50=_times(lengths.p50, factor),
        p90=_times(lengths.p90, factor),
        p99=_times(lengths.p99, factor),
        max=_times(lengths.max, factor),
    )


def _times(tokens: float, factor: float) -> int:
    return max(1, round(tokens * factor)) if tokens else 0


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _load_sources(concurrency: float | None, rate: float | None) -> Sources:
    given = {"concurrency": concurrency, "rate": rate}
    return {f"traffic.{fact}": f"flag --{fact}" for fact, value in given.items() if value is not None}


def _check(*, isl: float | None, osl: float | None, concurrency: float | None, rate: float | None) -> None:
    if concurrency is not None and rate is not None:
        raise TrafficProblem(
            f"--concurrency {concurrency:g} and --rate {rate:g} both set the load",
            where="--concurrency, --rate",
            hint="give --concurrency for a number of requests at once, or --rate for arrivals per second, not both",
        )
    for flag, value, most, unit in (
        ("--isl", isl, LONGEST, "tokens"),
        ("--osl", osl, LONGEST, "tokens"),
        ("--concurrency", concurrency, MOST_REQUESTS, "requests at once"),
        ("--rate", rate, MOST_REQUESTS, "requests per second"),
    ):
        if value is None:
            continue
        least = 0 if flag == "--rate" else 1
        if not math.isfinite(value) or value <= 0 or value < least:
            raise TrafficProblem(
                f"{flag} {value:g} is not a possible number of {unit}",
                where=flag,
                hint="give a number above 0" if flag == "--rate" else "give 1 or more",
            )
        if value > most:
            raise TrafficProblem(
                f"{flag} {value:g} is more than {most:,} {unit}", where=flag, hint="check the number and its unit"
            )
