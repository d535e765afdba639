"""The ratios that decide advice, against published pairs.

A ratio is right when it lies on the same side of 1 as the published one; published ratios within 2 % of 1 decide nothing and
count as right on either side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from measurements import TRUTH, Measured, prediction

LATENCIES = ("itl_ms", "ttft_ms")
CLOSE = 0.02


class Ratio(NamedTuple):
    """One published speed-up beside the estimated one."""

    technique: str
    engine: str
    metric: str
    what: str
    published: float
    estimated: float
    warm: bool = True
    """both were measured on servers that had seen requests before"""
    records: tuple[str, ...] = ()
    """the two that it is taken from"""

    @property
    def right_side(self) -> bool:
        """On the same side of 1, or the published one too close to it to tell."""
        return abs(self.published - 1) <= CLOSE or (self.published > 1) == (self.estimated > 1)


def pairs(measured: Iterable[Measured]) -> list[Ratio]:
    """The speed-ups derived from two published records of which both can be estimated."""
    by_id = {m.id: m for m in measured}
    found = []
    for line in (TRUTH / "speedups.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        ids = record.get("record_ids")
        if record["kind"] != "derived_from_published_pair" or not ids or any(i not in by_id for i in ids):
            continue
        one, other = by_id[ids[0]], by_id[ids[1]]
        if not (one.layout_stated and other.layout_stated):
            continue
        before, after = (getattr(prediction(m), m.field) for m in (one, other))
        if before and after:
            ratio = before / after if one.field in LATENCIES else after / before
            what = f"{record['model']} {record.get('gpu')} tp{record.get('tp')} {record['isl']}/{record['osl']}"
            warm = one.warm and other.warm
            made = Ratio(record["technique"], record["engine"], one.field, what, record["speedup"], ratio, warm, tuple(ids))
            found.append(made)
    return found
