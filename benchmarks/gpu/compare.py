"""Sets a results file of measure.py beside what the advisor's estimator predicts for the same operations and steps.

    python compare.py results/h200-2026-11-23.json [--gpu h200-sxm-141gb] [--json]

Predictions use the fitted constants of the GPU (profiles/constants). Single operations: without the factors of any engine
release. Whole steps: the GPU's part of the estimator's step under TensorRT-LLM 1.2.1, without host time. Errors are of
predicted against measured: mean absolute, mean signed, worst.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from layers import LAYERS
from serving import PARTS, SHAPES

from advisor.estimator.attention import attention
from advisor.estimator.constants import Constants, constants_of
from advisor.estimator.deployment import estimate
from advisor.estimator.engines import Runtime, runtime
from advisor.estimator.gemm import gemm
from advisor.estimator.memory import parameter_count
from advisor.estimator.network import all_reduce
from advisor.estimator.shapes import bits_per_element
from advisor.estimator.speculation import acceptance_rate
from advisor.estimator.step_time import step_time
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Gpu, Load, Model

MODELS = {"8b": "meta-llama/Llama-3.1-8B", "70b": "meta-llama/Llama-3.1-70B"}
FORMATS = {"bf16": "bf16", "fp8": "fp8", "int4": "int4_awq"}
Pair = tuple[float, float]
"""measured, predicted"""
GAINS = (
    ("fp8kv-eagle3", "fp8kv-plain"), ("fp8kv-draft1b", "fp8kv-plain"), ("fp8kv-ngram", "fp8kv-plain"),
    ("bf16-tp2", "bf16"), ("70b-fp8-tp4", "70b-fp8-tp2"), ("bf16", "bf16-eager"), ("fp8kv-plain", "fp8-eager"),
)  # fmt: skip
"""pairs of servers whose ratio of tokens/s decides an advice"""


def bare() -> Runtime:
    """An engine whose kernels are those of the tables, and that costs nothing."""
    plain = runtime("tensorrt-llm", "1.2.1", "x86")
    ones = {
        name: 1.0
        for name in Runtime._fields
        if name in ("launch", "decode", "prefill") or (name.startswith(("gemm", "moe")) and not name.endswith("_us"))
    }
    zeros = {name: 0.0 for name in Runtime._fields if name in ("sequence_us", "waiting_us", "step_us")}
    return plain._replace(**ones, **zeros)


def fastest(data: dict[str, Any]) -> dict[tuple[str, str, int, str], float]:
    """Model, layer, M and format -> microseconds of the fastest kernel that was measured, our own or vLLM's."""
    best: dict[tuple[str, str, int, str], float] = {}
    for section in ("gemm", "library_gemm"):
        for row in data.get(section, {}).get("result", []):
            if "us" in row:
                key = (row["model"], row["layer"], row["m"], row["format"].split()[0])
                best[key] = min(best.get(key, math.inf), row["us"])
    return best


def by_shape(data: dict[str, Any], constants: Constants, host: Runtime) -> Iterable[tuple[str, Pair]]:
    """GEMMs: each layer's time, by format and part of the range of M."""
    for (model, layer, m, form), measured in fastest(data).items():
        k, n = LAYERS[model][layer]
        weights: Any = FORMATS[form]
        predicted = gemm(constants, host, weights, k, n, bits_per_element(weights)).seconds(m) * 1e6
        span = "M 1-64" if m <= 64 else "M 128-512" if m <= 512 else "M 1024-8192"
        yield f"GEMM {form}, {span}", (measured, predicted)


def by_context(
    data: dict[str, Any], constants: Constants, host: Runtime, models: dict[str, Model]
) -> Iterable[tuple[str, Pair]]:
    """Attention of one layer: decode over batch and context (the faster kernel), prefill over length."""
    best: dict[tuple[str, int, int, int], float] = {}
    for row in [*data.get("attention", {}).get("result", []), *data.get("library_attention", {}).get("result", [])]:
        if "us" in row and "cache" in row:
            cache = "fp8" if row["cache"].startswith("float8") else "bf16"
            key = (cache, row["heads"], row["batch"], row["context"])
            best[key] = min(best.get(key, math.inf), row["us"])
    for (cache, heads, batch, context), measured in best.items():
        kv: Any = cache
        op = attention(constants, host, models["8b" if heads == 32 else "70b"], kv, 1, math.inf)
        size = batch * context
        span = "up to 16k cached tokens" if size <= 16384 else "more"
        yield f"decode attention {cache}, {span}", (measured, op.decode(batch, context) * 1e6)
    prompts: dict[tuple[int, int], float] = {}
    for row in [*data.get("prefill_attention", {}).get("result", []), *data.get("library_attention", {}).get("result", [])]:
        if "us" in row and "length" in row:
            at = (row["heads"], row["length"])
            prompts[at] = min(prompts.get(at, math.inf), row["us"])
    for (heads, length), measured in prompts.items():
        op = attention(constants, host, models["8b" if heads == 32 else "70b"], "bf16", 1, math.inf)
        yield "prefill attention bf16", (measured, op.prefill(length, length) * 1e6)


def whole_steps(data: dict[str, Any], constants: Constants, models: dict[str, Model]) -> Iterable[tuple[str, Pair]]:
    """Decode steps and prefills, the GPU's part of the estimator's step under TensorRT-LLM 1.2.1."""
    for row in data.get("decode", {}).get("result", []):
        if "ms" in row and "how" not in row:
            deployment = Deployment(weights=FORMATS[row["weights"]], kv_cache=row["kv_cache"])
            parts = step_time(constants, models[row["model"]], deployment, Engine()).parts(row["batch"], row["context"], 0, 1)
            yield f"decode step {row['model']} {row['weights']}, {row['kv_cache']} cache", (row["ms"], parts.gpu * 1e3)
    for row in data.get("prefill", {}).get("result", []):
        if "ms" in row:
            deployment = Deployment(weights=FORMATS[row["weights"]], kv_cache="bf16")
            parts = step_time(constants, models[row["model"]], deployment, Engine()).parts(0, 1, row["length"], row["length"])
            yield f"prefill {row['model']} {row['weights']}", (row["ms"], parts.gpu * 1e3)


def verification(data: dict[str, Any], constants: Constants, models: dict[str, Model]) -> Iterable[tuple[str, Pair]]:
    """What verifying several tokens costs relative to one: the ratio that decides speculation's break-even."""
    rows = data.get("verify", {}).get("result", [])
    one = {(r["model"], r["batch"]): r["ms"] for r in rows if r["tokens_per_sequence"] == 1}
    for row in rows:
        number = row["tokens_per_sequence"]
        if number == 1:
            continue
        step = step_time(constants, models[row["model"]], Deployment(weights="fp8", kv_cache="fp8"), Engine())
        base = step.parts(row["batch"], row["context"], 0, 1)
        wide = step.parts(row["batch"] * number, row["context"], 0, 1)
        predicted = (wide.gpu - wide.attention + base.attention) / base.gpu
        yield f"verification cost ratio {row['model']}", (row["ms"] / one[row["model"], row["batch"]], predicted)


def own_kernels(data: dict[str, Any], constants: Constants, models: dict[str, Model]) -> Iterable[tuple[str, Pair]]:
    """vLLM's kernels beside the estimator's word for vLLM: Machete, CUTLASS FP8 and FlashAttention 3."""
    host = runtime("vllm", "0.24.0", "x86")
    for row in data.get("library_gemm", {}).get("result", []):
        short = row.get("format", "")
        if "us" in row and short in ("int4 machete", "fp8 cutlass"):
            k, n = LAYERS[row["model"]][row["layer"]]
            weights: Any = "int4_gptq" if short.startswith("int4") else "fp8"
            predicted = gemm(constants, host, weights, k, n, bits_per_element(weights)).seconds(row["m"]) * 1e6
            yield f"vLLM: {short}, M {'1-64' if row['m'] <= 64 else '128-8192'}", (row["us"], predicted)
    for row in data.get("library_attention", {}).get("result", []):
        if "us" not in row:
            continue
        model = models["8b" if row["heads"] == 32 else "70b"]
        if "cache" in row:
            kv: Any = "fp8" if row["cache"].startswith("float8") else "bf16"
            op = attention(constants, host, model, kv, 1, math.inf)
            yield f"vLLM: decode attention, {kv} cache", (row["us"], op.decode(row["batch"], row["context"]) * 1e6)
        else:
            op = attention(constants, host, model, "bf16", 1, math.inf)
            yield "vLLM: prefill attention, bf16", (row["us"], op.prefill(row["length"], row["length"]) * 1e6)


@cache
def served_model(checkpoint: str = "bf16") -> Model:
    """What serving.py serves under this name; the formats of one shape are one model."""
    config = {name: value for name, value in SHAPES[checkpoint].items() if name != "quantization_config"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return read_model(folder)[0]


def shape_of(part: str) -> str:
    """The name in SHAPES of what a part serves; "" for SmolLM2."""
    checkpoint = PARTS[part].checkpoint
    return {"fp8": "bf16", "int4": "bf16", "70b-fp8": "70b-bf16"}.get(checkpoint, checkpoint if checkpoint in SHAPES else "")


def deployment_of(server: dict[str, Any], row: dict[str, Any]) -> Deployment:
    """A server's deployment, its drafts accepted as the server counted them at this level."""
    deployment = Deployment.model_validate({**server["deployment"], "max_batch_size": 256})
    speculation = deployment.speculation
    if speculation is None:
        return deployment
    longest = speculation.draft_len + 1
    rate = acceptance_rate(min(row["server_acceptance_length"], longest - 0.01), speculation.draft_len)
    size = parameter_count(served_model("1b")) - SHAPES["1b"]["vocab_size"] * SHAPES["1b"]["hidden_size"]
    known = {"acceptance": rate} | ({"draft_params": size} if speculation.method == "draft" else {})
    return deployment.model_copy(update={"speculation": speculation.model_copy(update=known)})


def predicted_rate(part: str, server: dict[str, Any], row: dict[str, Any], gpu: Gpu) -> float | None:
    """Output tokens/s of a part's deployment at a level's load, by the estimator."""
    load = Load(isl=row["isl"], osl=row["osl"], concurrency=row["concurrency"])
    engine = Engine(name="vllm", version=server["vllm"])
    return estimate(served_model(shape_of(part)), gpu, deployment_of(server, row), load, engine).output_tokens_per_s


def served(data: dict[str, Any], gpu: Gpu) -> Iterable[tuple[str, Pair]]:
    """Whole servers: output tokens/s at each concurrency; and the gain of drafts and of more GPUs, ratios of two servers.

    All requests of a level start together and are equally long, so they stay in step: prompts are computed apart from
    answers, TTFT is that of a burst and ITL that of steps without prompts. Throughput is what a steady estimate can be held to.
    """
    servers = data.get("serving", {}).get("servers", {})
    rates: dict[tuple[str, int], Pair] = {}
    for name, server in servers.items():
        for row in server["levels"] if shape_of(name) else ():
            said = predicted_rate(name, server, row, gpu)
            if said is not None:
                rates[name, row["concurrency"]] = row["output_tokens_per_s"], said
                span = "1-8" if row["concurrency"] <= 8 else "32-256"
                yield f"vLLM served, {name}: tokens/s, {span} at once", rates[name, row["concurrency"]]
    for one, other in GAINS:
        for (name, level), found in rates.items():
            if name == one and (other, level) in rates:
                base = rates[other, level]
                yield f"gain of {one} over {other}", (found[0] / base[0], found[1] / base[1])


def all_reduces(data: dict[str, Any], constants: Constants) -> Iterable[tuple[str, Pair]]:
    """Of vLLM's own kernels and NCCL, the faster at each size, which is what an engine uses."""
    best: dict[tuple[int, int], float] = {}
    for row in data.get("links", {}).get("rows", []):
        if "us" in row:
            key = row["gpus"], row["bytes"]
            best[key] = min(best.get(key, math.inf), row["us"])
    host = runtime("vllm", "0.24.0", "x86")
    for (gpus, size), us in best.items():
        span = "up to 256 KiB" if size <= 2**18 else "up to 4 MiB" if size <= 2**22 else "more"
        yield f"all-reduce, {gpus} GPUs, {span}", (us, all_reduce(constants, gpus, host).seconds(size) * 1e6)


def crossovers(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The M at which a layer's INT4 GEMMs take as long as bf16's and fp8's, by log-log interpolation; None: never faster."""
    sums: dict[tuple[str, str], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for (model, _, m, form), us in fastest(data).items():
        sums[model, form][m] += us
    found = []
    for model in sorted({model for model, _ in sums}):
        for other in ("bf16", "fp8"):
            ratio = {m: sums[model, other][m] / sums[model, "int4"][m] for m in sorted(sums[model, "int4"])}
            at: float | None = None
            points = sorted(ratio.items())
            for (m0, r0), (m1, r1) in pairwise(points):
                if r0 >= 1 > r1:
                    at = round(m0 * (m1 / m0) ** (math.log(r0) / math.log(r0 / r1)), 1)
            gains = {m: round(ratio[m], 2) for m in (1, 8, 32, 64, 128, 512) if m in ratio}
            found.append({"model": model, "int4 against": other, "crossover_m": at, "int4_gain_at_m": gains})
    return found


def summary(pairs: Iterable[tuple[str, Pair]]) -> dict[str, dict[str, float]]:
    """Group -> number, mean absolute, mean signed and worst error in percent."""
    groups: dict[str, list[float]] = defaultdict(list)
    for group, (measured, predicted) in pairs:
        groups[group].append(100 * (predicted / measured - 1))
    return {
        group: {
            "points": len(errors),
            "mean_abs_pct": round(sum(map(abs, errors)) / len(errors), 1),
            "bias_pct": round(sum(errors) / len(errors), 1),
            "worst_pct": round(max(errors, key=abs), 1),
        }
        for group, errors in groups.items()
    }


def compare(path: Path, gpu_name: str) -> dict[str, Any]:
    """All groups' errors and the crossovers of one results file."""
    data = json.loads(path.read_text())["sections"]
    gpu = find_gpu(gpu_name)[0]
    constants = constants_of(gpu)
    assert constants is not None
    models = {short: read_model(name)[0] for short, name in MODELS.items()}
    host = bare()
    pairs = [
        *by_shape(data, constants, host),
        *by_context(data, constants, host, models),
        *whole_steps(data, constants, models),
        *verification(data, constants, models),
        *own_kernels(data, constants, models),
        *served(data, gpu),
        *all_reduces(data, constants),
    ]
    return {"groups": summary(pairs), "crossovers": crossovers(data)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--gpu", default="h200-sxm-141gb")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = compare(options.results, options.gpu)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print("| group | points | mean abs. error | bias | worst |\n|---|---:|---:|---:|---:|")
    for group, e in found["groups"].items():
        print(f"| {group} | {e['points']} | {e['mean_abs_pct']} % | {e['bias_pct']:+} % | {e['worst_pct']:+} % |")
    for row in found["crossovers"]:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
