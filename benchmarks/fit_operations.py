"""Fits the op constants of profiles/constants from measured kernel times.

    python benchmarks/fit_operations.py TABLES [GPU ...]

TABLES: the folder systems/data of an installed aiconfigurator-core 0.12.0 (Apache-2.0, NVIDIA); its parquet tables hold
kernel times per GPU, shape and format. Needs numpy, scipy and pyarrow (development only). The forms are those of
advisor/estimator (gemm, attention, moe, recurrent, network); the error minimised is the logarithm of predicted/measured with
a soft-L1 loss, so that a few badly tuned kernels do not pull the fit. Nothing that scores the estimator is read here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.optimize import least_squares

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "a100-sxm-80gb": "a100_sxm", "l40s": "l40s", "h100-sxm-80gb": "h100_sxm", "h200-sxm-141gb": "h200_sxm", "b200": "b200_sxm",
    "gb200": "gb200", "b300": "b300_sxm", "gb300": "gb300", "rtx-pro-6000-blackwell-server": "rtx_pro_6000_server",
}  # fmt: skip
CACHE_BYTES = {"l40s": 96e6, "rtx-pro-6000-blackwell-server": 128e6}
"""L2 caches large enough to hold the operands of most rows of the tables, which in serving come from device memory"""
MATRIX_CACHE_BYTES = {"l40s": 64e6, "rtx-pro-6000-blackwell-server": 48e6}
"""weights that the GEMM tables still read faster than from device memory: they rotate copies, but for N above WIDEST_ROTATED"""
WIDEST_ROTATED = 16384
FEW_ROWS = (1, 2, 4, 8, 16)
"""of the tables' rows below 32, which have every number up to 17 and would weigh as much as all from 32 to 500"""
MANY_ROWS = 1024
"""rows of which the multiplication takes longer than reading the weights, wherever these are"""
NEWEST = ("1.3.0rc20", "1.0.0")
GENERATED = {"nvfp4_gen": "min_latency", "fp8_block_gen": "trtllmfp8experts", "bf16_gen": "trtllmbf16experts"}
"""kernel_source of NVIDIA's generated Blackwell kernels, by format"""
SGLANG = "sglang_fp8_block"
"""what SGLang runs on Hopper: Triton's kernels, at few experts' rows twice as fast as TensorRT-LLM's"""
WIDTHS = {"": 128, "_64": 64, "_256": 256}
"""key suffix of attention vectors -> the head's width"""
Rows = dict[str, Any]
Form = Callable[..., Any]


def gemm(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/gemm.py"""
    t0, ec, eb, a0, q, o, p, kk = x
    m, n, k = r["m"], r["n"], r["k"]
    compute = 2 * k * (m * n + a0 * 128 * np.minimum(m, 128)) / (peak * ec)
    weights = n * k * width / (bandwidth * eb)
    return t0 * 1e-6 + (compute**p + weights**p + (kk * 1e-9 * k) ** p) ** (1 / p) + 2 * m * (q * k + o * n) / bandwidth


def decode(x: Any, peak: float, bandwidth: float, sequences: Any, context: Any, byte: Any, flop: Any) -> Any:
    """advisor/estimator/attention.py, decode; `byte` and `flop` of one token of context"""
    t0, t1, w1, eb, ec, p, smin, chain = x
    moved = sequences * context * byte
    busy = sequences * (byte / (bandwidth * eb) + flop / (peak * ec)) * (context**p + smin**p) ** (1 / p)
    return t0 * 1e-6 + t1 * 1e-6 * moved / (moved + w1 * 1e6) + np.maximum(busy, chain * 1e-9 * context)


def attention_decode(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/attention.py, decode"""
    byte, flop = 2 * r["num_key_value_heads"] * r["head_dim"] * width, 4 * r["num_heads"] * r["head_dim"]
    return decode(x, peak, bandwidth, r["batch_size"], r["step"], byte, flop)


def attention_prefill(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/attention.py, prefill"""
    t0, ec, s0, q = x
    s, heads = r["isl"], r["num_heads"]
    pairs = 2 * r["batch_size"] * s * s * heads * r["head_dim"] / (peak * ec) * (1 + s0 / s)
    return t0 * 1e-6 + pairs + q * 2 * r["batch_size"] * s * 2 * (heads + r["num_key_value_heads"]) * r["head_dim"] / bandwidth


def moe(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/moe.py"""
    t0, ec, eb, p, pad, al, q, be, t1 = x
    m, h, k = r["num_tokens"], r["hidden_size"], r["topk"]
    element, local = 3 * h * r["inter_size"] / r["moe_tp_size"], r["num_experts"] / r["moe_ep_size"]
    touched = local * (1 - np.exp(-al * m * k / r["num_experts"]))
    rows = m * np.minimum(k / r["moe_ep_size"] ** (1 - be), np.minimum(k, local))
    compute = 2 * element * (rows + pad * touched) / (peak * ec)
    memory = touched * element * width / (bandwidth * eb)
    return t0 * 1e-6 + t1 * 1e-9 * local + (compute**p + memory**p) ** (1 / p) + q * 2 * rows * h / bandwidth


def mla_decode(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/attention.py, decode, of a cache of 576 elements per token (DeepSeek's)"""
    return decode(x, peak, bandwidth, r["batch_size"], r["step"], 576 * width, 2 * r["num_heads"] * (576 + 512))


def mla_prefill(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/attention.py, prefill, with 192-wide keys and 128-wide values (DeepSeek's)"""
    t0, ec, s0, q = x
    s, heads = r["isl"], r["num_heads"]
    pairs = r["batch_size"] * s * s * heads * 320 / (peak * ec) * (1 + s0 / s)
    return t0 * 1e-6 + pairs + q * 2 * r["batch_size"] * s * heads * (192 + 192 + 128 + 128) / bandwidth


def collective(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """advisor/estimator/network.py; the tables count elements of two bytes"""
    t0, gb_s, t1, b1 = x
    size = 2.0 * r["message_size"]
    return t0 * 1e-6 + size / (gb_s * 1e9) + t1 * 1e-6 * size / (size + b1 * 1e6)


def quantize(x: Any, peak: float, bandwidth: float, r: Rows, width: float) -> Any:
    """Dynamic per-tensor FP8 quantization of an [M, K] activation, which the fp8 GEMM table includes"""
    t0, passes = x
    return t0 * 1e-6 + passes * 2 * r["m"] * r["k"] / bandwidth


DECODE = "t0_us t1_us w1_mb eb ec p smin chain_ns"
NAMES: dict[Form, str] = {
    gemm: "t0_us ec eb a0 q o p kk_ns", attention_decode: DECODE, attention_prefill: "t0_us ec s0 q",
    moe: "t0_us ec eb p pad al q be t1_ns", mla_decode: DECODE, mla_prefill: "t0_us ec s0 q",
    collective: "t0_us gb_s t1_us b1_mb", quantize: "t0_us passes",
}  # fmt: skip
BOUNDS = {
    "t0_us": (0.1, 200), "t1_us": (0.01, 20000), "t1_ns": (0.1, 500), "kk_ns": (1e-3, 5), "ec": (0.02, 2), "eb": (0.3, 1.6),
    "a0": (1e-3, 500), "q": (1e-3, 60), "o": (1e-3, 20), "p": (0.8, 16), "w1_mb": (0.1, 20000), "chain_ns": (1e-3, 100),
    "smin": (1, 500), "s0": (10, 5000), "pad": (1e-3, 200), "al": (0.4, 2.5), "be": (0.05, 0.9), "gb_s": (1, 2000),
    "b1_mb": (0.01, 200), "passes": (0.1, 10),
}  # fmt: skip
"""what is physically possible; keeps a term that the rows do not determine from growing without bound"""
CACHE_RATE = (0.3, 0.95)
"""share of the bandwidth at which caches are read, whose rows have little that an L2 could hold beside"""
STARTS: dict[Form, list[list[float]]] = {
    gemm: [[5, 0.75, 0.85, 2, 0.5, 1, 2, 0.2], [5, 0.6, 0.85, 8, 2, 1, 1.2, 0.5], [6, 0.5, 0.85, 100, 2, 1, 3, 2]],
    attention_decode: [
        [9, 10, 50, 0.9, 0.5, 2.2, 150, 1],
        [9, 30, 10, 0.9, 1.5, 2.2, 300, 1],
        [9, 10, 50, 0.9, 0.5, 2.2, 150, 8],
    ],
    attention_prefill: [[15, 0.6, 500, 1.5]],
    moe: [[30, 0.6, 1.0, 1.2, 10, 1.0, 5, 0.35, 50], [30, 0.8, 1.2, 0.9, 1, 1.0, 5, 0.4, 5]],
    mla_decode: [[12, 10, 50, 0.9, 0.5, 2.2, 64, 0.1], [12, 10, 50, 0.9, 1, 2.2, 64, 10]],
    mla_prefill: [[15, 0.6, 700, 1]],
    collective: [[4, 200, 30, 4], [4, 120, 5, 0.5]],
    quantize: [[5, 1.5]],
}


LARGE_BYTES = 100e6
"""of cache read at once: what a batch that fills the memory reads; such rows count three times"""


def importance(rows: Rows, width: float) -> Any:
    """How often each row counts."""
    if "step" not in rows or "head_dim" not in rows:
        return 1.0
    moved = 2 * rows["batch_size"] * rows["step"] * rows["num_key_value_heads"] * rows["head_dim"] * width
    return np.where(moved > LARGE_BYTES, 3.0, 1.0)


def fit(form: Form, rows: Rows, peak: float, bandwidth: float, width: float) -> tuple[dict[str, float], float, float]:
    """The vector of a form that meets the rows best; mean absolute error and bias in percent."""
    measured, weight = rows["latency"] * 1e-3, importance(rows, width)
    best: Any = None
    for start in STARTS[form]:
        cache = NAMES[form] == DECODE
        low, high = np.array([CACHE_RATE if cache and n == "eb" else BOUNDS[n] for n in NAMES[form].split()]).T
        found = least_squares(
            lambda z: weight * np.log(np.maximum(form(np.exp(z), peak, bandwidth, rows, width), 1e-9) / measured),
            np.log(np.clip(start, low * 1.01, high * 0.99)), bounds=(np.log(low), np.log(high)),
            loss="soft_l1", f_scale=0.1, max_nfev=300,
        )  # fmt: skip
        if best is None or found.cost < best.cost:
            best = found
    error = form(np.exp(best.x), peak, bandwidth, rows, width) / measured - 1
    vector = {name: float(f"{value:.4g}") for name, value in zip(NAMES[form].split(), np.exp(best.x), strict=True)}
    return vector, float(np.mean(np.abs(error)) * 100), float(np.mean(error) * 100)


FEW_TOKENS, MANY_TOKENS = 64, 1024


def by_shape(vector: dict[str, float], frame: Any, peak: float, bandwidth: float, width: float) -> dict[str, list[float]]:
    """hidden x width x experts -> medians of measured/fitted time of that model's experts at few and at many tokens.

    Grouped kernels are tuned shape by shape, so a form shared by all shapes is up to a third off at some of them.
    """
    expected = moe([vector[name] for name in NAMES[moe].split()], peak, bandwidth, columns(frame), width)
    found: dict[str, list[float]] = {}
    ratios = frame.assign(ratio=frame.latency * 1e-3 / expected)
    for shape, rows in ratios.groupby(["hidden_size", "inter_size", "num_experts"]):
        parts = rows.ratio[rows.num_tokens <= FEW_TOKENS], rows.ratio[rows.num_tokens >= MANY_TOKENS]
        if min(map(len, parts)) >= 5:
            found["x".join(str(int(size)) for size in shape)] = [float(f"{part.median():.3g}") for part in parts]
    return found


def table(folder: Path, op: str, name: str, versions: Sequence[str] = NEWEST, backend: str = "trtllm") -> tuple[Any, str]:
    """The newest table of an op as a dict of columns, and its path below `systems/data`."""
    import pyarrow.parquet as parquet

    for version in versions:
        path = folder / op / backend / version / f"{name}.parquet"
        if path.is_file():
            return parquet.read_table(path).to_pandas(), str(path.relative_to(folder.parent))
    return None, ""


def cold(frame: Any, moved: Any, gpu: str, bandwidth: float) -> Any:
    """The rows whose `moved` bytes came from device memory: not faster than its bandwidth, not smaller than a large L2."""
    keep = moved / (frame.latency * 1e-3) < 0.95 * bandwidth
    return frame[keep & (moved >= CACHE_BYTES.get(gpu, 0.0))]


def cold_matrices(frame: Any, width: float, gpu: str, bandwidth: float) -> Any:
    """The same for matrices: those that were read from device memory, and whatever is bound by its multiplications."""
    weights = frame.n * frame.k * width
    cached = np.where(frame.n > WIDEST_ROTATED, CACHE_BYTES.get(gpu, 0.0), MATRIX_CACHE_BYTES.get(gpu, 0.0))
    return frame[(weights / (frame.latency * 1e-3) < 0.95 * bandwidth) & ((weights >= cached) | (frame.m >= MANY_ROWS))]


def columns(frame: Any) -> Rows:
    """Numeric columns as float arrays."""
    return {c: frame[c].to_numpy(dtype=float) for c in frame.columns if frame[c].dtype.kind in "if"}


def engines_own(path: Path) -> dict[str, list[str]]:
    """Lines of an op's vectors that other data gave (benchmarks/gpu/fit_kernels.py), by op."""
    found: dict[str, list[str]] = {}
    op = ""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        if not line.startswith(" "):
            op = line.partition(":")[0]
        elif "own: true" in line:
            found.setdefault(op, []).append(line)
    return found


def fit_gpu(tables: Path, gpu: str, kept: dict[str, list[str]]) -> str:
    """profiles/constants/<gpu>.yaml as text; `kept`: lines of it that are not fitted here, by op."""
    folder = tables / FOLDERS[gpu]
    spec = yaml.safe_load((tables.parent / f"{FOLDERS[gpu]}.yaml").read_text())["gpu"]
    bandwidth, bf16 = spec["mem_bw"], spec["bfloat16_tc_flops"]
    peaks = {"bf16": bf16, "int8": spec.get("int8_tc_flops"), "fp8": spec.get("fp8_tc_flops"), "fp4": spec.get("fp4_tc_flops")}
    out = [
        "# Constants of the closed forms in advisor/estimator, fitted by benchmarks/fit_operations.py to the kernel tables of",
        "# aiconfigurator-core 0.12.0 (Apache-2.0, NVIDIA). source: table below systems/data; error_pct: mean absolute error.",
        f"gpu: {gpu}",
        "peaks:  # that the efficiencies are relative to",
        f"  bandwidth_gb_s: {bandwidth / 1e9:g}",
    ]
    out += [f"  {name}_tflops: {'null' if not value else f'{value / 1e12:g}'}" for name, value in peaks.items()]

    def section(name: str, entries: list[tuple[str, Form, Any, str, float, float]]) -> None:
        lines = []
        for key, form, frame, source, peak, width in entries:
            if frame is None or not peak:
                continue
            frame = frame[frame.latency > 0]
            if len(frame) < 12:
                continue
            vector, error, bias = fit(form, columns(frame), peak, bandwidth, width)
            body = ", ".join(f"{k}: {v:g}" for k, v in vector.items())
            if form is moe:
                shapes = by_shape(vector, frame, peak, bandwidth, width).items()
                body += f", shapes: {{{', '.join(f'{k}: [{a:g}, {b:g}]' for k, (a, b) in shapes)}}}"
            shown = f'"{key}"' if key.isdigit() else key
            lines.append(
                f"  {shown}: {{{body}, source: {source}, rows: {len(frame)}, error_pct: {error:.1f}, bias_pct: {bias:.1f}}}"
            )
            print(gpu, name, key, f"{error:.1f} %", f"{bias:+.1f}", flush=True)
        lines += kept.get(name, [])
        if lines:
            out.extend([f"{name}:", *lines])

    d, source = table(folder, "gemm", "gemm_perf")
    d = d[(d.n >= 256) & (d.k >= 256) & (d.k <= 16384) & (d.m <= 8192) & ((d.m >= 32) | d.m.isin(FEW_ROWS))]
    forms = [
        ("bf16", "bfloat16", "bf16", 2.0), ("fp8", "fp8", "fp8", 1.0), ("fp8_block", "fp8_block", "fp8", 1.0),
        ("nvfp4", "nvfp4", "fp4", 0.5625), ("int8_wo", "int8_wo", "bf16", 1.0), ("int4", "int4_wo", "bf16", 0.53),
        ("int8_sq", "sq", "int8", 1.0),
    ]  # fmt: skip
    section(
        "gemm",
        [
            (key, gemm, cold_matrices(rows, width, gpu, bandwidth), source, peaks[unit], width)
            for key, tag, unit, width in forms
            for rows in [d[d.gemm_dtype == tag]]
        ],
    )

    entries: list[tuple[str, Form, Any, str, float, float]] = []
    for key, name in (("compute_scale", "computescale_perf"), ("scale_matrix", "scale_matrix_perf")):
        d, source = table(folder, "quantize", name)
        if d is not None:
            entries.append((key, quantize, d[(d.k >= 256) & (d.k <= 16384) & (d.m <= 16384)], source, 1.0, 2.0))
    section("quantize", entries)

    kinds = [("bf16", "bfloat16", 2.0), ("fp8", "fp8", 1.0)]
    d, source = table(folder, "attention", "generation_attention_perf")
    d = d[(d.window_size == 0) & (d.num_heads >= 4) & (d.step >= 63) & (d.batch_size * d.step <= 2**23)]
    alone = d.num_heads == d.num_key_value_heads
    shared = ~alone & (d.num_key_value_heads <= 8) & (d.num_heads <= 16 * d.num_key_value_heads)
    heads = [(suffix, d[shared & (d.head_dim == size)]) for suffix, size in WIDTHS.items()]
    entries = []
    for suffix, rows in (*heads, ("_mha", d[alone & (d.head_dim == 128)])):
        for key, tag, width in kinds:
            chosen = rows[rows.kv_cache_dtype == tag]
            moved = 2 * chosen.batch_size * chosen.step * chosen.num_key_value_heads * chosen.head_dim * width
            entries.append((key + suffix, attention_decode, cold(chosen, moved, gpu, bandwidth), source, bf16, width))
    section("attention_decode", entries)

    d, source = table(folder, "attention", "context_attention_perf")
    d = d[(d.window_size == 0) & (d.num_heads >= 4) & (d.isl >= 64)]
    pairs = [("bf16_bf16", "bfloat16", "bfloat16"), ("bf16_fp8", "bfloat16", "fp8"), ("fp8_fp8", "fp8", "fp8")]
    entries = []
    for suffix, size in WIDTHS.items():
        for key, queries, cache in pairs:
            chosen = d[(d.head_dim == size) & (d.attn_dtype == queries) & (d.kv_cache_dtype == cache)]
            entries.append((key + suffix, attention_prefill, chosen, source, bf16, 2.0))
    section("attention_prefill", entries)
    section("moe", _moe_entries(folder, peaks, gpu, bandwidth))

    d, source = table(folder, "mla", "generation_mla_perf")
    if d is not None:
        d = d[(d.step >= 63) & (d.num_heads >= 8)]
        section("mla_decode", [(k, mla_decode, d[d.kv_cache_dtype == t], source, bf16, w) for k, t, w in kinds])
        d, source = table(folder, "mla", "context_mla_perf")
        d = d[(d.isl >= 64) & (d.num_heads >= 8)]
        section("mla_prefill", [(k, mla_prefill, d[d.kv_cache_dtype == t], source, bf16, w) for k, t, w in kinds])

    d, source = table(folder, "comm", "custom_allreduce_perf")
    sizes = (2, 4, 8, 16)
    section("all_reduce", [(str(n), collective, d[d.num_gpus == n], source, 1.0, 2.0) for n in sizes])
    for version in ("2.29.2", "2.27.3"):
        d, source = table(folder, "comm", "nccl_perf", (version,), "nccl")
        if d is not None:
            d = d[(d.op_name == "all_gather") & (d.nccl_dtype == "half")]
            section("all_gather", [(str(n), collective, d[d.num_gpus == n], source, 1.0, 2.0) for n in sizes])
            break
    return "\n".join(out) + "\n"


def _moe_entries(
    folder: Path, peaks: dict[str, Any], gpu: str, bandwidth: float
) -> list[tuple[str, Form, Any, str, float, float]]:
    """Gated experts under the moderate power-law routing of the tables; only the throughput kernels."""
    d, source = table(folder, "moe", "moe_perf")
    sibling = folder.parent / folder.name.replace("b300", "b200")
    generated, generated_source = table(sibling, "moe", "moe_perf")  # the tables of B300 and GB300 lack these kernels
    vllm, vllm_source = table(folder, "moe", "moe_perf", ("0.24.0",), "vllm")
    forms = [
        ("bf16", "bfloat16", "bf16", 2.0), ("fp8", "fp8", "fp8", 1.0), ("fp8_block", "fp8_block", "fp8", 1.0),
        ("nvfp4", "nvfp4", "fp4", 0.5625), ("nvfp4_gen", "nvfp4", "fp4", 0.5625), ("mxfp4", "w4a16_mxfp4", "bf16", 0.53125),
        ("fp8_block_gen", "fp8_block", "fp8", 1.0), ("bf16_gen", "bfloat16", "bf16", 2.0),
        (SGLANG, "fp8_block", "fp8", 1.0), ("mxfp4_fp8", "w4a8_mxfp4_mxfp8", "fp8", 0.53125),
        ("int4", "int4_wo", "bf16", 0.53), ("w4a8", "w4afp8", "fp8", 0.53),
    ]  # fmt: skip
    found: list[tuple[str, Form, Any, str, float, float]] = []
    known = dict.fromkeys(GENERATED, ((vllm, vllm_source),)) | {"nvfp4_gen": ((generated, generated_source),)}
    known[SGLANG] = (table(folder, "moe", "moe_perf", ("0.5.14",), "sglang") if gpu.startswith("h") else (None, ""),)
    for key, tag, unit, width in forms:
        for frame, where in known.get(key, ((d, source), (vllm, vllm_source))):
            if frame is None:
                continue
            rows = frame[
                (frame.moe_dtype == tag) & (frame.moe_ep_size <= 8) & (frame.moe_tp_size <= 8) & (frame.num_experts < 512)
            ]
            wanted = GENERATED.get(
                key, "triton" if key == SGLANG else "flow|cutlass|deepgemm|vllm|marlin|triton|flashinfer|sglang"
            )
            rows = rows[rows.kernel_source.str.contains(wanted) & ~rows.kernel_source.str.contains("nongated")]
            if key != "nvfp4_gen":
                rows = rows[~rows.kernel_source.str.contains("min_latency")]
            if (rows.distribution == "power_law_1.01").any():
                rows = rows[rows.distribution == "power_law_1.01"]
            each = 3 * rows.hidden_size * rows.inter_size / rows.moe_tp_size * width * (rows.num_experts / rows.moe_ep_size)
            rows = cold(rows, each * (1 - np.exp(-rows.num_tokens * rows.topk / rows.num_experts)), gpu, bandwidth)
            if len(rows) >= 12:
                found.append((key, moe, rows, where, peaks[unit], width))
                break
    return found


def main() -> None:
    """Fit the named GPUs, or all, and write their files."""
    tables, names = Path(sys.argv[1]), sys.argv[2:] or list(FOLDERS)
    for gpu in names:
        path = ROOT / "profiles" / "constants" / f"{gpu}.yaml"
        path.write_text(fit_gpu(tables, gpu, engines_own(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
