"""What was measured before, in one SQLite file of the user's: how wrong the estimates were, and the correction from it.

Deleting the file is always safe: estimates are then the estimator's own again. Several programs may write at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import FileProblem
from advisor.executor.servers.cache import cache_folder
from advisor.types import Correction

if TYPE_CHECKING:
    import sqlite3

FILE = "ADVISE_EVIDENCE"
VERSION = 1
PRIOR = 2.0
"""measurements that the estimator's own word counts as: one measurement moves an estimate by a third of what it was off"""
CORRECTED = ("ttft_ms", "itl_ms", "output_tokens_per_s", "request_latency_ms")
_HINT = "delete the file: that is always safe, only what was learned from earlier measurements is lost"


@dataclass(frozen=True)
class Observation:
    """One figure of one measured deployment beside its estimate, both in the unit that the metric's name ends with."""

    at: str
    """ISO time, UTC"""
    gpu: str
    gpus: int
    model: str
    engine: str
    engine_version: str
    deployment: str
    """JSON"""
    isl: float
    osl: float
    load: str
    """ "concurrency 8" or "rate 2.5" """
    metric: str
    predicted: float | None
    """by the estimator itself, uncorrected; None: it had no estimate for this machine"""
    measured: float
    low: float | None
    high: float | None
    client: str


def evidence_file(given: str | Path | None = None) -> Path:
    """The given file, ADVISE_EVIDENCE, or evidence.sqlite in the user's cache folder."""
    return Path(given or os.environ.get(FILE) or cache_folder() / "evidence.sqlite")


def record(path: Path, observations: Sequence[Observation]) -> None:
    """Append observations, all or none of them. Raises FileProblem."""
    names = [each.name for each in fields(Observation)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileProblem(
            f"cannot write: {error.strerror}", where=str(path), hint="give another file with --evidence"
        ) from None
    with _opened(path) as store:
        store.execute("BEGIN IMMEDIATE")
        columns = ", ".join(f'"{name}"' for name in names)
        store.execute(f"CREATE TABLE IF NOT EXISTS observations ({columns})")
        store.execute(f"PRAGMA user_version = {VERSION}")
        places = ", ".join("?" * len(names))
        store.executemany(f"INSERT INTO observations ({columns}) VALUES ({places})", [astuple(each) for each in observations])
        store.execute("COMMIT")


def read(path: Path, *, gpu: str | None = None, model: str | None = None, engine: str | None = None) -> tuple[Observation, ...]:
    """The observations, oldest first, of a GPU, model and engine where given; none without a file. Raises FileProblem."""
    if not path.exists():
        return ()
    names = ", ".join(f'"{each.name}"' for each in fields(Observation))
    wanted = {"gpu": gpu, "model": model, "engine": engine}
    where = [f"{name} = ?" for name, value in wanted.items() if value is not None]
    with _opened(path) as store:
        if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'observations'").fetchone():
            return ()
        sentence = f"SELECT {names} FROM observations" + (f" WHERE {' AND '.join(where)}" if where else "") + " ORDER BY at"
        rows = store.execute(sentence, [value for value in wanted.values() if value is not None]).fetchall()
    return tuple(Observation(*row) for row in rows)


def corrections(observations: Sequence[Observation]) -> dict[str, Correction]:
    """Metric -> how estimates are to be corrected: the mean log ratio of measured over predicted, n / (n + PRIOR) of it.

    The shrinkage is that of a mean with a prior worth PRIOR measurements at ratio 1. Pure.
    """
    found = {}
    for metric in CORRECTED:
        ratios = [ratio for each in observations if each.metric == metric and (ratio := ratio_of(each)) is not None]
        if ratios:
            mean = math.fsum(math.log(ratio) for ratio in ratios) / len(ratios)
            factor = math.exp(mean * len(ratios) / (len(ratios) + PRIOR))
            found[metric] = Correction(factor=factor, count=len(ratios), low=min(ratios), high=max(ratios))
    return found


def ratio_of(observation: Observation) -> float | None:
    """Measured over predicted; None without a prediction."""
    if not observation.predicted or observation.predicted <= 0 or observation.measured <= 0:
        return None
    return observation.measured / observation.predicted


def errors_so_far(observations: Sequence[Observation]) -> tuple[tuple[str, str, str, int, float, float], ...]:
    """(GPU, model, metric, measurements, median of measured over predicted, median absolute error as a share of measured)."""
    import statistics  # slow to import, and `advise --model` reads this module

    groups: dict[tuple[str, str, str], list[float]] = {}
    for each in observations:
        ratio = ratio_of(each)
        if ratio is not None:
            groups.setdefault((each.gpu, each.model, each.metric), []).append(ratio)
    return tuple(
        (*key, len(ratios), statistics.median(ratios), statistics.median(abs(1 / ratio - 1) for ratio in ratios))
        for key, ratios in sorted(groups.items())
    )


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that waits for other writers; the rollback journal, so that the file alone holds everything."""
    import sqlite3

    try:
        store = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        try:
            version = store.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise FileProblem(
                    f"this evidence file has version {version}, {VERSION} is read here", where=str(path), hint=_HINT
                )
            yield store
        finally:
            store.close()
    except sqlite3.Error as error:
        raise FileProblem(f"this evidence file cannot be used: {error}", where=str(path), hint=_HINT) from None
