"""Fits the vectors of measured kernels (the forms of advisor/estimator) to a results file, as profiles/constants keeps them.

    python fit_kernels.py results/h100-2026-11-28.json [--gpu h100-sxm-80gb]

Prints a line for the constants file for vLLM's INT4 GEMM and its decode and prefill attention, with the error of the fit; for
the GEMM also that of each layer under a fit without it. The fitting is benchmarks/fit_operations.py's; needs numpy, scipy.
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

WIDTH = {"int4": 4.15625 / 8}
"""bytes a weight, with a 16-bit scale and a 4-bit zero point in groups of 128"""


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
        fit_operations.gemm, rows, peaks["bf16_tflops"] * 1e12, peaks["bandwidth_gb_s"] * 1e9, WIDTH[short]
    )


def attention_rows(path: Path, cache: str | None) -> dict[str, Any]:
    """FlashAttention 3's decode over one kind of cache, or its prefill (None), with the columns that the forms want."""
    found = json.loads(path.read_text())["sections"]["library_attention"]["result"]
    rows = [row for row in found if "us" in row and (row.get("cache") == cache if cache else "length" in row)]
    length = "step" if cache else "isl"
    return {
        length: np.array([float(row["context" if cache else "length"]) for row in rows]),
        "batch_size": np.array([float(row.get("batch", 1)) for row in rows]),
        "num_heads": np.array([float(row["heads"]) for row in rows]),
        "num_key_value_heads": np.array([float(row["kv_heads"]) for row in rows]),
        "head_dim": np.full(len(rows), 128.0),
        "latency": np.array([row["us"] / 1e3 for row in rows]),
    }


def line(name: str, fit: tuple[dict[str, float], float, float], rows: dict[str, Any], source: str) -> str:
    """A line of profiles/constants."""
    vector, error, bias = fit
    inner = ", ".join(f"{key}: {value:g}" for key, value in vector.items())
    tail = f"rows: {len(rows['latency'])}, error_pct: {error:.1f}, bias_pct: {bias:.1f}"
    return f"  {name}: {{{inner}, own: true, source: measured {source}, {tail}}}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--gpu", default="h100-sxm-80gb")
    options = parser.parse_args()
    peaks = yaml.safe_load((fit_operations.ROOT / f"profiles/constants/{options.gpu}.yaml").read_text())["peaks"]
    rate, bandwidth, source = peaks["bf16_tflops"] * 1e12, peaks["bandwidth_gb_s"] * 1e9, options.results.name
    rows = rows_of(options.results, "int4 machete")
    print(line("vllm_int4", fitted(rows, peaks, "int4"), rows, source))
    for layer in sorted(set(rows["layer"])):
        inside = rows["layer"] == layer
        part, _, _ = fitted({name: values[~inside] for name, values in rows.items()}, peaks, "int4")
        one = {name: values[inside] for name, values in rows.items()}
        x = [part[name] for name in fit_operations.NAMES[fit_operations.gemm].split()]
        predicted = fit_operations.gemm(x, rate, bandwidth, one, WIDTH["int4"])
        print(f"    {layer} left out: {np.mean(np.abs(predicted / (one['latency'] * 1e-3) - 1)) * 100:.1f} %")
    for name, cache, width in (("vllm_bf16", "bfloat16", 2.0), ("vllm_fp8", "float8_e4m3fn", 1.0)):
        rows = attention_rows(options.results, cache)
        print(line(name, fit_operations.fit(fit_operations.attention_decode, rows, rate, bandwidth, width), rows, source))
    rows = attention_rows(options.results, None)
    print(
        line("vllm_bf16_bf16", fit_operations.fit(fit_operations.attention_prefill, rows, rate, bandwidth, 2.0), rows, source)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
