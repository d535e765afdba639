"""Derives the length figures of a profile in profiles/traffic: from a trace, or from a mean and an assumed spread.

    python benchmarks/traffic_profile.py trace.csv
    python benchmarks/traffic_profile.py --assume 4096 0.8 512 0.5

Prints `isl`, `osl`, `burstiness`, `length_dispersion`, `shared_prefix` and `lengths` as YAML. The length sample is 16 bands
of equally many requests by input length, each cut into 8 bands by output length; a pair is the mean of one band, so the
sample keeps both means and how the two lengths go together.
An assumed spread is a log-normal with that mean and coefficient of variation; its "max" is the 99.9 % quantile.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from advisor.profiler.trace import read_trace, rows_of

BANDS = (16, 8)


def bands(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The sample: (input, output) means of 16 x 8 bands of equally many requests."""
    by_input = sorted(pairs)
    outer, inner = BANDS
    sample = []
    for i in range(outer):
        band = sorted(by_input[i * len(by_input) // outer : (i + 1) * len(by_input) // outer], key=lambda pair: pair[1])
        for j in range(inner):
            cell = band[j * len(band) // inner : (j + 1) * len(band) // inner]
            sample.append((round(statistics.fmean(p[0] for p in cell)), round(statistics.fmean(p[1] for p in cell))))
    return sample


def log_normal(mean: float, cv: float, count: int) -> list[float]:
    """`count` equally likely values of a log-normal, by the quantiles at the middle of each share."""
    sigma = math.sqrt(math.log(1 + cv * cv))
    mu = math.log(mean) - sigma * sigma / 2
    normal = statistics.NormalDist()
    return [math.exp(mu + sigma * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]


def assumed(isl: float, isl_cv: float, osl: float, osl_cv: float) -> list[tuple[int, int]]:
    """A grid of independent log-normal lengths."""
    return [(round(a), max(1, round(b))) for a in log_normal(isl, isl_cv, 200) for b in log_normal(osl, osl_cv, 200)]


def quantiles(values: Sequence[float]) -> str:
    """Mean, p50, p90, p99 and max as a YAML flow mapping; quantiles are the nearest rank's."""
    ordered = sorted(values)
    at = {f"p{round(100 * q)}": ordered[max(0, math.ceil(q * len(ordered)) - 1)] for q in (0.5, 0.9, 0.99)}
    shown = {"mean": round(statistics.fmean(ordered), 1), **at, "max": ordered[-1]}
    return "{" + ", ".join(f"{name}: {value}" for name, value in shown.items()) + "}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--assume", nargs=4, type=float, metavar=("ISL", "ISL_CV", "OSL", "OSL_CV"))
    given = parser.parse_args()
    if given.assume:
        pairs = assumed(*given.assume)
    else:
        pairs = [(row.isl, row.osl) for row in rows_of(str(given.trace))]
    outputs = [float(b) for _, b in pairs]
    print("isl:", quantiles([a for a, _ in pairs]))
    print("osl:", quantiles([b for _, b in pairs]))
    print("length_dispersion:", round(statistics.pstdev(outputs) / statistics.fmean(outputs), 3))
    if given.trace:
        traffic, _ = read_trace(str(given.trace))
        print("burstiness:", traffic.burstiness)
        print("shared_prefix:", traffic.shared_prefix)
        print("# rate:", traffic.rate, "requests:", traffic.requests)
    sample = bands(pairs)
    print("lengths: [")
    for i in range(0, len(sample), 8):
        print("  " + ", ".join(f"[{a}, {b}]" for a, b in sample[i : i + 8]) + ",")
    print("]")


if __name__ == "__main__":
    main()
