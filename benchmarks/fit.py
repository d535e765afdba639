"""Fits what serving engines add to the GPU's work (profiles/constants/_engines.yaml) on published measurements.

    python benchmarks/fit.py [--write] [ERA ...]

Each era (engine and release line) is fitted on its own records. The error that counts is that of records held out: five folds
of whole groups (model, GPU, format), each predicted by constants fitted on the other four. They stand in
benchmarks/held_out.csv, their quantiles become the intervals of profiles/constants/_intervals.yaml, and what the same constants
choose in the published tables of those groups stands in benchmarks/held_out_choices.csv. With --write these files are written,
and the constants from a fit on all records. Needs numpy and scipy (development only). Minimised: the soft-L1 norm of
log(estimate / measurement), beside a pull to priors.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from choices import CHOSEN, Choice, Table, choices, tables
from measurements import Measured, error, read_measurements, unsaid
from scipy.optimize import least_squares

from advisor import library
from advisor.estimator import deployment, engines
from advisor.estimator.intervals import line_of

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ROOT / "profiles" / "constants" / "_engines.yaml"
INTERVALS = ROOT / "profiles" / "constants" / "_intervals.yaml"
HELD_OUT = ROOT / "benchmarks" / "held_out.csv"
FOLDS = 5
ERAS = {
    "tensorrt-llm 0.14 to 0.17": ("tensorrt-llm", "0"),
    "tensorrt-llm 0.19 and later": ("tensorrt-llm", "0.19"),
    "vllm": ("vllm", "0"),
    "sglang": ("sglang", "0"),
}
"""engine, and the release whose entry in _engines.yaml is fitted"""
BOUNDS = {
    "sequence_us": (0.05, 40), "waiting_us": (0.05, 40), "pipeline_us": (0.5, 60), "step_us": (1, 5000), "layer_us": (1, 100),
    "moe_layer_us": (0.5, 80), "scan_layer_us": (0.5, 80), "passes": (2, 40), "wide": (0.02, 5),
    "runtime_gib": (0.2, 6), "grace_factor": (0.6, 4), "overlap": (1, 8),
    "launch": (0.1, 1.5), "gemm16": (0.8, 1.5), "gemm8": (0.8, 1.5), "gemm8_ada": (0.8, 1.5), "gemm_block": (0.7, 1.5),
    "gemm4": (0.7, 1.5), "decode": (0.7, 1.4), "prefill": (0.6, 1.6), "moe16": (0.7, 1.5), "moe8": (0.7, 1.5),
    "moe_block": (0.6, 1.5),
    "moe4": (0.6, 1.6), "wire_latency": (0.3, 2.5), "wire_bandwidth": (0.3, 2), "wire_ring": (0.3, 2), "ring_us": (0.5, 60),
    "ring_ampere_us": (0.5, 60), "pair_us": (0.5, 100), "pcie_latency_us": (2, 80), "pcie_share": (0.25, 0.9),
    "pcie_far_share": (0.2, 0.9), "pcie_staged_us": (2, 80), "pcie_pair_ms": (1, 200), "pcie_staged_share": (0.3, 1),
    "sampling": (1, 20), "fused_fp4": (0.01, 1), "exchange": (0.1, 1.5),
    "scatter_us": (1, 300), "scatter_passes": (1, 300), "request_ms": (1, 300), "eager_layer_us": (5, 2000),
    "eager_moe_us": (5, 3000), "eager_mla_us": (5, 3000), "eager_block_us": (1, 300),
}  # fmt: skip
"""what is physically plausible"""
COMMON = [
    "sequence_us", "step_us", "layer_us", "moe_layer_us", "passes", "launch", "gemm16", "gemm8", "decode", "prefill",
    "wire_latency", "wire_bandwidth",
]  # fmt: skip
FITTED = {
    "tensorrt-llm 0.14 to 0.17": [
        *COMMON, "waiting_us", "overlap", "grace_factor", "runtime_gib", "gemm8_ada", "moe16", "moe8", "moe16@0.17",
        "wire_ring", "ring_us", "ring_ampere_us", "pair_us", "pair_us@0.17", "pcie_latency_us", "pcie_share", "pcie_far_share",
        "pcie_staged_us", "pcie_pair_ms", "pcie_staged_share",
    ],
    "tensorrt-llm 0.19 and later": [
        *COMMON, "wide", "waiting_us", "pipeline_us", "overlap", "grace_factor", "runtime_gib", "sampling", "gemm_block",
        "gemm4", "moe_block", "moe4", "fused_fp4", "scatter_us", "scatter_passes", "ring_us", "pair_us", "layer_us@1.2",
        "moe_layer_us@1.2", "exchange@1.2",
    ],
    "vllm": [*COMMON, "wide", "gemm_block", "gemm4", "moe_block", "moe4", "fused_fp4"],
    "sglang": [
        *COMMON, "wide", "gemm_block", "gemm4", "moe_block", "moe4", "fused_fp4", "layer_us@0.5.9", "moe_layer_us@0.5.9",
        "scan_layer_us", "scan_layer_us@0.5.10",
    ],
}  # fmt: skip
EAGER = ["eager_layer_us", "eager_moe_us", "eager_mla_us"]
FIRST = {
    "tensorrt-llm 0.19 and later": ["request_ms", "eager_block_us"],
    "vllm": ["request_ms", *EAGER],
    "sglang": ["request_ms", *EAGER],
}
"""what the first tokens determine, fitted when all else is: for TensorRT-LLM up to 0.17 only a request's handling"""
WEIGHT = {"offline": 1.0, "itl": 0.7, "served itl": 0.7, "ttft": 0.5, "served ttft": 0.5}
PULL = {"tensorrt-llm 0.14 to 0.17": 0.3, "tensorrt-llm 0.19 and later": 3.0, "vllm": 2.0, "sglang": 2.0}
"""weight of one e-fold of a constant away from its prior, against an error of the same size in one record: a constant that few
groups determine stays where physics puts it. Chosen by the error of held-out groups: many groups of one release bear a weak
pull, few groups of many releases need a strong one"""
PRIOR = {
    "sequence_us": 2.0, "waiting_us": 2.0, "pipeline_us": 12.5, "step_us": 100.0, "layer_us": 12.0, "moe_layer_us": 20.0,
    "passes": 8.0, "wide": 0.6, "runtime_gib": 2.0, "grace_factor": 1.0, "overlap": 1.2, "launch": 0.7, "sampling": 5.0,
    "fused_fp4": 0.5,
    "scatter_us": 40.0, "scatter_passes": 25.0, "eager_block_us": 30.0,
    "moe_layer_us@1.2": 12.0, "exchange@1.2": 0.7, "layer_us@0.5.9": 9.0, "moe_layer_us@0.5.9": 12.0,
    "scan_layer_us": 20.0, "scan_layer_us@0.5.10": 10.0,
    "request_ms": 40.0, "eager_layer_us": 300.0, "eager_moe_us": 800.0, "eager_mla_us": 500.0,
    "ring_us": 5.0, "ring_ampere_us": 10.0, "pair_us": 20.0, "pair_us@0.17": 3.0,
    "pcie_latency_us": 15.0, "pcie_share": 0.5, "pcie_far_share": 0.5,
    "pcie_staged_us": 25.0, "pcie_pair_ms": 40.0, "pcie_staged_share": 0.7,
}  # fmt: skip
"""of the constants that are not factors on kernel times; those are 1 before anything is measured. 1.2 and 0.5.9 chain kernels
without gaps (programmatic dependent launch) and exchange tokens by direct writes: the same DeepSeek-R1 deployments became 10
to 19 % faster from one release to the next at every batch. Before 0.5.10 SGLang ran more kernels around a recurrent layer's
scan than the one that the tables of 0.5.14 have. DeepGEMM's experts took six kernels more than others', of about 6 us, and
read or wrote a token's choice, in 32 and 16 bits, about seven times at a quarter of the bandwidth; quantizing the tokens of a
multiplication takes two operators more, where the eight of a plain layer take 100 us to launch"""

PRIOR_OF = {"tensorrt-llm 0.14 to 0.17": {"request_ms": 10.0, "pair_us": 10.0, "passes": 14.0}}
"""the C++ server handles a request sooner: the trial's blind test took 10 ms (facts/estimator.md, 2c); TensorRT fuses what lies
between matrices into them"""


def place(era: str, name: str) -> tuple[str, int, str]:
    """Engine, number of the entry and field of a constant that is fitted with an era; NAME@RELEASE is a later entry's."""
    field, _, release = name.partition("@")
    engine, first = ERAS[era]
    index = next(i for i, entry in enumerate(engines._entries()[engine]) if str(entry["from"]) == (release or first))
    return engine, index, field


def apply(era: str, values: dict[str, float]) -> None:
    """Make estimates use these values."""
    for name, value in values.items():
        engine, index, field = place(era, name)
        engines._entries()[engine][index][field] = value
    engines.runtime.cache_clear()
    deployment.CACHED.clear()


def starting_values(era: str) -> dict[str, float]:
    """Where the fit starts and what it is pulled to."""
    prior = PRIOR | PRIOR_OF.get(era, {})
    names = [*FITTED[era], *FIRST.get(era, ["request_ms"])]
    return {name: prior.get(name, prior.get(name.partition("@")[0], 1.0)) for name in names}


def fit(era: str, records: Sequence[Measured], start: dict[str, float], near: dict[str, float]) -> dict[str, float]:
    """The values that meet the records best, pulled to `start`, searched from `near`."""
    names = list(start)
    low, high = np.log(np.array([BOUNDS[name.partition("@")[0]] for name in names])).T
    prior = np.clip(np.log([start[name] for name in names]), low + 1e-4, high - 1e-4)
    first = np.clip(np.log([near[name] for name in names]), low + 1e-4, high - 1e-4)
    weights = np.array([WEIGHT[record.regime] for record in records])
    moves: dict[int, Any] = {}

    def errors(z: Any, which: Any) -> Any:
        apply(era, dict(zip(names, np.exp(z).tolist(), strict=True)))
        found = (error(records[index]) for index in which)
        return np.array([1.0 if e is None else e for e in found]) * weights[which]

    everything = np.arange(len(records))

    def residuals(z: Any) -> Any:
        return np.concatenate([errors(z, everything), PULL[era] * (z - prior)])

    def slopes(z: Any) -> Any:
        """Forward differences; a constant is tried only on the records that it moved the first time."""
        base, found = errors(z, everything), np.zeros((len(records) + len(names), len(names)))
        for number in range(len(names)):
            which = moves.get(number, everything)
            step = 0.02 if z[number] + 0.02 < high[number] else -0.02
            moved = z.copy()
            moved[number] += step
            column = (errors(moved, which) - base[which]) / step
            found[which, number] = column
            found[len(records) + number, number] = PULL[era]
            moves.setdefault(number, which[column != 0.0])
        return found

    best = least_squares(residuals, first, jac=slopes, bounds=(low, high), loss="soft_l1", f_scale=0.08, max_nfev=12)
    return {name: float(f"{value:.3g}") for name, value in zip(names, np.exp(best.x).tolist(), strict=True)}


def fold(group: str) -> int:
    """The fold of a group, the same on every machine."""
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % FOLDS


def fit_all(era: str, records: Sequence[Measured], start: dict[str, float], near: dict[str, float]) -> dict[str, float]:
    """The values that meet the records best, those of the first token last; they stay in use."""
    first = FIRST.get(era, ["request_ms"])
    used = [r for r in records if counts(r)]
    steady = [r for r in used if not r.regime.endswith("ttft")]
    apply(era, {name: start[name] for name in first})
    found = fit(era, steady, {name: start[name] for name in FITTED[era]}, near)
    apply(era, found)
    if len(used) > len(steady):
        found |= fit(era, used, {name: start[name] for name in first}, near)
    apply(era, found)
    return found


def counts(record: Measured) -> bool:
    """Whether the constants are fitted on a record: its source leaves nothing open, and no kernel was compiled meanwhile."""
    return record.layout_stated and (record.regime != "ttft" or (record.protocol_known and record.warm))


def held_out_errors(
    era: str, records: Sequence[Measured], choosing: Sequence[Table], start: dict[str, float], near: dict[str, float]
) -> tuple[list[tuple[Measured, float]], list[tuple[Measured, float]], list[Choice]]:
    """Each record with its error, first tokens also without the scripts' settings, and each table's choice.

    All under constants that were fitted without its group.
    """
    found, plain, chosen = [], [], []
    for number in range(FOLDS):
        rest = [r for r in records if fold(r.group) != number]
        mine = [r for r in records if fold(r.group) == number]
        if not mine or not rest:
            continue
        fit_all(era, rest, start, near)
        found += [(r, round(e, 4)) for r in mine for e in [error(r)] if e is not None]
        pairs = [(r, unsaid(r)) for r in mine if r.regime == "ttft"]
        plain += [(r, round(e, 4)) for r, u in pairs if u.deployment != r.deployment for e in [error(u)] if e is not None]
        chosen += choices(t for t in choosing if fold(t.group) == number)
    apply(era, start)
    return found, plain, chosen


def summary(errors: Sequence[tuple[Measured, float]]) -> str:
    """Mean, median and bias in percent."""
    values = np.expm1([e for _, e in errors])
    return (
        f"n {len(values):4d}   mean {100 * np.mean(np.abs(values)):5.1f} %   median {100 * np.median(np.abs(values)):5.1f} %"
        f"   bias {100 * np.mean(values):+5.1f} %"
    )


def kind(record: Measured) -> str:
    """The class of records that share an interval."""
    return "moe" if record.model.moe else "dense"


FEWEST = 3
"""groups that a kind of model needs for an interval of its own; with fewer it has that of all kinds"""


def intervals(errors: Sequence[tuple[Measured, float]]) -> dict[str, dict[str, list[float]]]:
    """regime -> kind -> factors (low, high) on an estimate between which 80 % of the held-out measurements lie."""
    found: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for regime, what in sorted({(record.regime, kind(record)) for record, _ in errors}):
        every = [(record, -e) for record, e in errors if record.regime == regime]
        mine = [(record, e) for record, e in every if kind(record) == what]
        chosen = mine if len({record.group for record, _ in mine}) >= FEWEST else every
        low, high = np.exp(np.quantile([e for _, e in chosen], [0.1, 0.9]))
        found[regime][what] = [float(f"{low:.3g}"), float(f"{high:.3g}"), len(chosen)]
    return dict(found)


def write_engines(fitted: dict[str, dict[str, float]]) -> None:
    """Replace the fitted values in the file, line by line, so that its comments stay."""
    lines, out = ENGINES.read_text(encoding="utf-8").splitlines(), []
    new = {place(era, name): value for era, values in fitted.items() for name, value in values.items()}
    engine, index = "", -1
    for line in lines:
        if line and not line[0].isspace() and line.endswith(":"):
            engine, index = line[:-1], -1
        index += line.startswith("  - ")
        key = line.strip().removeprefix("- ").split(":")[0]
        if (engine, index, key) in new:
            line = f"    {key}: {new[engine, index, key]:g}"
        out.append(line)
    ENGINES.write_text("\n".join(out) + "\n", encoding="utf-8")


def main() -> None:
    """Fit, cross-validate, print, and write on request."""
    names = [a for a in sys.argv[1:] if a in ERAS] or list(ERAS)
    measured, _ = read_measurements()
    fitted: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, dict[str, list[float]]]] = {}
    lines: list[str] = []
    picks: list[str] = []
    for era in names:
        records = [r for r in measured if r.era == era]
        choosing = [t for t in tables() if line_of(t.engine) == era]
        start = starting_values(era)
        fitted[era] = fit_all(era, records, start, start)
        everything = [(r, e) for r in records if r.layout_stated for e in [error(r)] if e is not None]
        chosen = choices(choosing)
        held_out, plain, chosen_held_out = held_out_errors(era, records, choosing, start, fitted[era])
        print(era)
        if plain:
            print(f"  held out  ttft without the scripts' settings {summary(plain)}")
        for regime in dict.fromkeys(r.regime for r in records):
            print(f"  held out  {regime:12s} {summary([x for x in held_out if x[0].regime == regime and x[0].layout_stated])}")
        lines += [f"{r.id},{era},{e:.4f}" for r, e in held_out] + [f"{r.id} plain,{era},{e:.4f}" for r, e in plain]
        picks += [f"{c.id},{era},{c.option},{c.regret:.4f}" for c in chosen_held_out]
        spread[era] = intervals([x for x in held_out if counts(x[0])])
        for regime in dict.fromkeys(r.regime for r in records):
            print(f"  all in    {regime:12s} {summary([x for x in everything if x[0].regime == regime])}")
        for name, picked in (("held out", chosen_held_out), ("all in  ", chosen)):
            print(f"  {name}  choices      {sum(c.near_best for c in picked)} of {len(picked)}")
        print("  ", fitted[era], flush=True)
    if "--write" in sys.argv:
        write_engines(fitted)
        library.write_whole(INTERVALS, interval_text(spread))
        write_lines(HELD_OUT, "id,era,log_error", lines, spread)
        write_lines(CHOSEN, "id,era,option,regret", picks, spread)


def write_lines(path: Path, header: str, lines: Sequence[str], eras: Collection[str]) -> None:
    """Replace the lines of these eras in a CSV file."""
    kept = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    kept = [line for line in kept if line.split(",")[1] not in eras]
    library.write_whole(path, "\n".join([header, *sorted([*kept, *lines])]) + "\n")


def interval_text(spread: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """The intervals as YAML, those of eras not fitted now kept."""
    known = yaml.safe_load(INTERVALS.read_text(encoding="utf-8")) if INTERVALS.is_file() else {}
    known.update(spread)
    lines = [
        "# 80 % intervals: factors (low, high) on an estimate, and the number of held-out measurements they were taken from.",
        "# engine and release line -> regime -> kind of model. Written by benchmarks/fit.py.",
    ]
    for era, regimes in known.items():
        lines.append(f"{era}:")
        for regime, kinds in regimes.items():
            body = ", ".join(f"{what}: [{', '.join(f'{v:g}' for v in values)}]" for what, values in kinds.items())
            lines.append(f"  {regime}: {{{body}}}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
