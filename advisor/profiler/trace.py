"""What a request trace says about the traffic: rate, concurrency, lengths, burstiness, shared prefixes."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.errors import TrafficProblem
from advisor.profiler.rows import Columns, Row, open_trace
from advisor.profiler.tally import GENERATION, GapTally, PrefixTally, Reservoir, TokenTally
from advisor.types import Traffic


def rows_of(path: str) -> Iterator[Row]:
    """The rows of a trace, one at a time; errors as read_trace."""
    with open_trace(path) as (_, rows):
        yield from rows


def read_trace(path: str) -> tuple[Traffic, dict[str, str]]:
    """The traffic of a trace, CSV or JSON lines, plain or gzip, "-" for standard input; read once, in bounded memory.

    Understands the columns of the Azure LLM inference traces, the Mooncake and Qwen-Bailian traces, and the usual variants.
    Rate is in arrivals per second; with an end or latency column the concurrency follows by Little's law (L = rate x mean
    time in the system; Little 1961). Raises FileProblem, or TrafficProblem naming file:line; no row is ever skipped.
    """
    with open_trace(path) as (columns, rows):
        return _Summary(columns).of(rows)


def read_arrivals(path: str, most: int) -> tuple[tuple[float, int, int], ...]:
    """(seconds after the first, input, output tokens) of a trace's first `most` requests; at least one token each way.

    Raises as read_trace.
    """
    with open_trace(path) as (columns, rows):
        summary = _Summary(columns)
        kept: list[tuple[float, int, int]] = []
        for row in rows:
            if len(kept) < most:
                kept.append((row.arrival, max(1, row.isl), max(1, row.osl)))
            summary.add(row)
        unit, _ = summary.unit()
    return tuple(((arrival - kept[0][0]) * unit, isl, osl) for arrival, isl, osl in kept)


class _Summary:
    """Everything counted in one pass over a trace."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.isl = TokenTally()
        self.osl = TokenTally()
        self.gaps = GapTally()
        self.prefixes = PrefixTally()
        self.sample = Reservoir()
        self.stays = 0.0

    def of(self, rows: Iterator[Row]) -> tuple[Traffic, dict[str, str]]:
        """Count all rows, then conclude."""
        for row in rows:
            self.add(row)
        if not self.isl.count:
            raise TrafficProblem(
                "this trace has a header and no requests",
                where=self.columns.name,
                hint="give a trace with at least one request",
            )
        return self._conclude()

    def add(self, row: Row) -> None:
        """Count one row; rows come in order of arrival."""
        if not self.gaps.add(row.arrival):
            raise TrafficProblem(
                f"this request arrived before the one above it ({row.arrival:g} after {self.gaps.last:g})",
                where=f"{self.columns.name}:{row.line}",
                hint=f"sort the trace by {self.columns.found['arrival']}",
            )
        self.isl.add(row.isl)
        self.osl.add(row.osl)
        self.sample.add((row.isl, row.osl))
        if row.blocks is not None:
            self.prefixes.add(row.blocks, row.isl)
        stay = row.latency if row.latency is not None else None if row.end is None else self._stay(row)
        if stay is not None:
            if stay < 0:
                raise TrafficProblem(
                    "this request ends before it arrives", where=f"{self.columns.name}:{row.line}", hint="check the two columns"
                )
            self.stays += stay

    def _stay(self, row: Row) -> float:
        """Time from arrival to end, in the unit of the end column when it has one, else of the arrivals."""
        assert row.end is not None
        ratio = (self.columns.unit or 1.0) / self.columns.end_unit if self.columns.end_unit else 1.0
        return row.end - row.arrival * ratio

    def unit(self) -> tuple[float, str]:
        """Seconds per unit of the arrival column, and how that is known."""
        columns, first = self.columns, abs(self.gaps.first)
        column = columns.found["arrival"]
        if columns.unit is not None:
            return columns.unit, ""
        for above, unit, name in ((1e17, 1e-9, "nanoseconds"), (1e14, 1e-6, "microseconds"), (1e11, 1e-3, "milliseconds")):
            if first >= above:
                return unit, f"{column} is read as {name} since 1970."
        if columns.mooncake and self.gaps.whole and self.gaps.last > 0:
            return 1e-3, f"{column} is read as milliseconds, as in the Mooncake trace: all are whole numbers."
        return 1.0, "" if first >= 1e8 else f"{column} is read as seconds."

    def _conclude(self) -> tuple[Traffic, dict[str, str]]:
        unit, told = self.unit()
        columns = self.columns
        notes = [told] if told else []
        per_unit = self.gaps.rate()
        rate = per_unit / unit if per_unit is not None else None
        if rate is None:
            notes.append("All requests arrive at the same time: there is no rate.")
        concurrency = None
        if "latency" in columns.found or "end" in columns.found:
            stay_unit = (columns.latency_unit if "latency" in columns.found else columns.end_unit) or unit
            if rate is not None:
                concurrency = rate * self.stays * stay_unit / self.isl.count
        elif rate is not None:
            notes.append(
                "The trace has no latency or end column, so the concurrency follows from the rate and the estimated latency;"
                " add a column latency or end_time to have it measured."
            )
        if "latency" in columns.found and columns.latency_unit is None:
            notes.append(f"{columns.found['latency']} is read as {'seconds' if unit == 1 else 'the unit of the arrivals'}.")
        if self.osl.zeros:
            notes.append(f"{self.osl.zeros:,} of {self.osl.count:,} requests have no output tokens; they are counted.")
        shared = self.prefixes.share()
        if shared is not None:
            if self.prefixes.requests < self.isl.count:
                notes.append(
                    f"{self.prefixes.requests:,} of {self.isl.count:,} requests have prefix hashes; the share is theirs."
                )
            if self.prefixes.forgot:
                notes.append(f"Prefix blocks are remembered for at least the last {GENERATION:,} blocks.")
        traffic = Traffic(
            name=columns.name,
            isl=self.isl.lengths(),
            osl=self.osl.lengths(),
            concurrency=concurrency,
            rate=rate,
            burstiness=self.gaps.burstiness(),
            length_dispersion=self.osl.dispersion(),
            shared_prefix=shared,
            requests=self.isl.count,
            lengths=self.sample.pairs(),
            notes=tuple(notes),
        )
        return traffic, self._sources(traffic)

    def _sources(self, traffic: Traffic) -> dict[str, str]:
        trace = f"trace {self.columns.name}"
        found = self.columns.found
        how = {
            "isl": f"{trace}, column {found['isl']}",
            "osl": f"{trace}, column {found['osl']}",
            "rate": f"{trace}, column {found['arrival']}",
            "burstiness": f"{trace}, column {found['arrival']}",
            "concurrency": f"{trace}: Little's law, rate x mean {found.get('latency') or found.get('end')}",
            "length_dispersion": f"{trace}, column {found['osl']}",
            "shared_prefix": f"{trace}, column {found.get('blocks')}: leading blocks seen before, nothing evicted",
            "requests": trace,
            "lengths": f"{trace}, uniform sample",
        }
        return {f"traffic.{fact}": text for fact, text in how.items() if getattr(traffic, fact) is not None}
