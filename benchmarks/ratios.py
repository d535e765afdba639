"""The ratios and choices that decide advice, against published pairs and tables.

A ratio is right when it lies on the same side of 1 as the published one; published ratios within 2 % of 1 decide nothing and
count as right on either side. A choice is right when the option that the estimates prefer reached at least 97 % of the best.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from measurements import TRUTH, Measured, gpu, model, prediction

from advisor.errors import NotPossible
from advisor.estimator.batching import published_requests
from advisor.estimator.deployment import estimate
from advisor.estimator.intervals import line_of
from advisor.types import Deployment, Engine, Gpu, Load, Model

LATENCIES = ("itl_ms", "ttft_ms")
CLOSE = 0.02
NEAR_BEST = 0.03


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
            found.append(
                Ratio(record["technique"], record["engine"], one.field, what, record["speedup"], ratio, one.warm and other.warm)
            )
    return found


class Choice(NamedTuple):
    """One published table: what its best column reached and what the one that we would choose did."""

    id: str
    group: str
    """model, GPU and format, as of Measured"""
    era: str
    what: str
    option: str
    """the one that the estimates prefer"""
    options: dict[str, float]

    @property
    def regret(self) -> float:
        """Share of the best that our choice gives away."""
        return 1 - self.options[self.option] / max(self.options.values())

    @property
    def near_best(self) -> bool:
        """Whether it reached at least 97 % of the best."""
        return self.regret <= NEAR_BEST


class Table(NamedTuple):
    """One published table as estimates to make."""

    id: str
    what: str
    model: Model
    gpu: Gpu
    weights: str
    engine: Engine
    load: Load
    options: dict[str, float]

    @property
    def group(self) -> str:
        """Model, GPU and format: what is held out together."""
        return f"{self.model.name}|{self.gpu.id}|{self.weights}"


def tables() -> list[Table]:
    """The tables of facts/truth/choices.jsonl whose best column is known."""
    lines = (TRUTH / "choices.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "best_of_table"]
    return [made for record in records for made in [_table(record)] if made is not None]


def _table(record: dict[str, Any]) -> Table | None:
    known, where = model(record["model"]), gpu(record["gpu"], 64)
    weights = {"fp16": "bf16"}.get(record["choice"]["weights_quant"], record["choice"]["weights_quant"])
    release = re.search(r"(\d+\.\d+)(?!.*\d\.\d)", record["source"])
    if known is None or release is None:
        return None
    assert where is not None
    engine = Engine(version="1.1" if "1.1-1.2" in record["source"] else "0.19" if "0.19" in record["source"] else release[1])
    isl, osl = record["scenario"]["isl"], record["scenario"]["osl"]
    load = Load(isl=isl, osl=osl, requests=published_requests(isl, osl))
    what = f"{record['model']} {record['gpu']} {weights} {isl}/{osl} ({engine.version})"
    return Table(record["id"], what, known, where, weights, engine, load, record["choice"]["options"])


def choices(wanted: Iterable[Table] | None = None) -> list[Choice]:
    """What the estimates choose in the tables, in all or in those wanted; without those of which they know one option."""
    return [made for table in (tables() if wanted is None else wanted) for made in [_choice(table)] if made is not None]


def _choice(table: Table) -> Choice | None:
    rates: dict[str, float] = {}
    for option in table.options:
        size = {key: int(n) for key, n in re.findall(r"(tp|pp|ep)(\d+)", option)}
        tp, pp = size.get("tp", 1), size.get("pp", 1)
        dp = "adp" in option or "dep" in option or (table.model.moe is not None and table.engine.version >= "1" and tp > 1)
        fields = {
            "tensor_parallel": tp,
            "pipeline_parallel": pp,
            "expert_parallel": size.get("ep", tp if dp else 1),
            "attention_dp": dp,
            "weights": table.weights,
            "kv_cache": "bf16" if table.weights in ("bf16", "mxfp4") else "fp8",
        }
        try:
            made = estimate(table.model, table.gpu, Deployment.model_validate(fields), table.load, table.engine)
        except NotPossible:
            continue
        rates[option] = made.output_tokens_per_s_per_gpu or 0.0
    if len(rates) < 2:
        return None
    ours = max(rates, key=lambda option: rates[option])
    return Choice(table.id, table.group, line_of(table.engine), table.what, ours, table.options)
