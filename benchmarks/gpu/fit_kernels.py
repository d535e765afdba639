"""Fits the vector of one measured kernel (advisor/estimator/gemm.py's form) to a results file, as profiles/constants keeps it.

    python fit_kernels.py results/h100-2026-11-28.json [--format "int4 machete"] [--gpu h100-sxm-80gb]

Prints a line for the constants file, with the error of the fit and, shape by shape, that of a fit without the shape. The
fitting is benchmarks/fit_operations.py's; needs numpy and scipy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from layers import LAYERS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fit_operations

WIDTH = {"int4": 4.15625 / 8, "fp8": 1.0, "bf16": 2.0}
"""bytes a weight; INT4 with a 16-bit scale and a 4-bit zero point in groups of 128"""
UNIT = {"int4": "bf16", "fp8": "fp8", "bf16": "bf16"}


def rows_of(path: Path, form: str) -> dict[str, Any]:
    """m, n, k and latency (ms) of every measured call of a kernel, and which layer it is of."""
    sections = json.loads(path.read_text())["sections"]
    found = [
        (row["m"], *LAYERS[row["model"]][row["layer"]], row["us"] / 1e3, f"{row['model']} {row['layer']}")
        for section in ("gemm", "library_gemm")
        for row in sections.get(section, {}).get("result", [])
        if row.get("format") == form and "us" in row
    ]
    m, k, n, latency, layer = map(np.array, zip(*found, strict=True))
    return {"m": m.astype(float), "k": k.astype(float), "n": n.astype(float), "latency": latency, "layer": layer}


def fitted(rows: dict[str, Any], peaks: dict[str, float], short: str) -> tuple[dict[str, float], float, float]:
    """Vector, mean absolute error and bias in percent."""
    return fit_operations.fit(
        fit_operations.gemm, rows, peaks[f"{UNIT[short]}_tflops"] * 1e12, peaks["bandwidth_gb_s"] * 1e9, WIDTH[short]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--format", default="int4 machete", dest="form")
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    options = parser.parse_args()
    constants = yaml.safe_load((fit_operations.ROOT / f"profiles/constants/{options.gpu}.yaml").read_text())
    peaks, short = constants["peaks"], options.form.split()[0]
    rows = rows_of(options.results, options.form)
    vector, error, bias = fitted(rows, peaks, short)
    held_out = []
    for layer in sorted(set(rows["layer"])):
        inside = rows["layer"] == layer
        part, _, _ = fitted({name: values[~inside] for name, values in rows.items()}, peaks, short)
        one = {name: values[inside] for name, values in rows.items()}
        x = [part[name] for name in fit_operations.NAMES[fit_operations.gemm].split()]
        rate, bandwidth = peaks[f"{UNIT[short]}_tflops"] * 1e12, peaks["bandwidth_gb_s"] * 1e9
        predicted = fit_operations.gemm(x, rate, bandwidth, one, WIDTH[short])
        held_out.append((layer, float(np.mean(np.abs(predicted / (one["latency"] * 1e-3) - 1)) * 100)))
    inner = ", ".join(f"{name}: {value:g}" for name, value in vector.items())
    print(f"{options.form.replace(' ', '_')}: {{{inner}, own: true, source: measured {options.results.stem}, rows: {len(rows['m'])}, "
          f"error_pct: {error:.1f}, bias_pct: {bias:.1f}}}")  # fmt: skip
    print("left out:", ", ".join(f"{layer} {value:.1f} %" for layer, value in held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
