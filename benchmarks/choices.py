"""What the estimates would choose where a published table shows several configurations of one deployment.

A choice is right when the option that the estimates prefer reached at least 97 % of the best. benchmarks/fit.py writes to
benchmarks/held_out_choices.csv what constants choose that were fitted without the table's group.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measurements import TRUTH, gpu, model

from advisor.errors import NotPossible
from advisor.estimator.batching import published_requests
from advisor.estimator.deployment import estimate
from advisor.estimator.intervals import line_of
from advisor.types import Deployment, Engine, Gpu, Load, Model

CHOSEN = Path(__file__).resolve().parent / "held_out_choices.csv"
NEAR_BEST = 0.03


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


def held_out_regrets() -> dict[str, float]:
    """Table id -> what the choice under constants fitted without its group gives away."""
    if not CHOSEN.is_file():
        return {}
    with CHOSEN.open(encoding="utf-8") as file:
        return {row["id"]: float(row["regret"]) for row in csv.DictReader(file)}


def choice_lines(found: Sequence[Choice]) -> list[str]:
    """How often the preferred option was within 3 % of the best, by release, and every table where it was not."""
    out = held_out_regrets()
    lines = [
        "The option that the estimates prefer reached within 3 % of the best of its published table. Held out: chosen with "
        "constants that were fitted without the table's group.", "",
        "| release line | tables | within 3 % | held out: within 3 % |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for era in (*sorted({c.era for c in found}), "**all**"):
        some = [c for c in found if era in (c.era, "**all**")]
        held = [out[c.id] <= NEAR_BEST for c in some if c.id in out]
        shares = [(sum(c.near_best for c in some), len(some)), (sum(held), len(held))]
        columns = " | ".join(f"{good} ({100 * good / total:.1f} %)" if total else "-" for good, total in shares)
        lines.append(f"| {era} | {len(some)} | {columns} |")
    missed = [c for c in found if not c.near_best or out.get(c.id, 0.0) > NEAR_BEST]
    lines += ["", "| table | chosen | given away | held out | measured, output tokens/s per GPU |", "|---|---|---:|---:|---|"]
    for c in sorted(missed, key=lambda c: -max(c.regret, out.get(c.id, 0.0))):
        held_out_regret = f"{100 * out[c.id]:.1f} %" if c.id in out else "-"
        measured = ", ".join(f"{option} {value:,.0f}" for option, value in c.options.items())
        lines.append(f"| {c.what} | {c.option} | {100 * c.regret:.1f} % | {held_out_regret} | {measured} |")
    return [*lines, "", *repeat_lines(found), ""]


def repeat_lines(found: Sequence[Choice]) -> list[str]:
    """What the table of another release would have chosen: what no estimate of both can be expected to exceed by much."""
    alike: dict[str, list[Choice]] = defaultdict(list)
    for c in found:
        alike[c.what.split(" (")[0]].append(c)
    regrets = []
    for one in found:
        for other in alike[one.what.split(" (")[0]]:
            both = one.options.keys() & other.options.keys()
            if other.id != one.id and len(both) > 1:
                best = max(sorted(both), key=other.options.__getitem__)
                regrets.append(1 - one.options[best] / max(one.options[option] for option in both))
    good = sum(regret <= NEAR_BEST for regret in regrets)
    return [
        f"Measured twice: {len(regrets)} of these tables appeared for another release too, with the same columns. The best of "
        f"the other one is within 3 % of the best in {good} ({100 * good / max(len(regrets), 1):.1f} %): what a predictor "
        "reaches that knows another measurement of the same deployments."
    ]
