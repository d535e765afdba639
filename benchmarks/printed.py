"""Speed-ups that a source prints (facts/truth/speedups.jsonl, kind published_ratio) beside the estimated ones.

Of a technique that a deployment can express, with its model, GPU and load stated: the record's baseline and its treatment are
both estimated for the release that the source describes. Drafts take the acceptance that the source prints, else a typical one.
"""

from __future__ import annotations

import json
import re
from typing import Any

from measurements import TRUTH, gpu, model
from ratios import Ratio

from advisor.estimator.deployment import estimate
from advisor.estimator.speculation import acceptance_rate
from advisor.types import Deployment, Engine, Estimate, Load, Speculation

RELEASES = {
    "blogs/quantization-in-TRT-LLM": ("tensorrt-llm", "0.9"), "examples/benchmark.md": ("tensorrt-llm", "0.15"),
    "performance-tuning-guide": ("tensorrt-llm", "0.16"), "tech_blog/blog1": ("tensorrt-llm", "1.0"),
    "tech_blog/blog3": ("tensorrt-llm", "1.0"), "tech_blog/blog7": ("tensorrt-llm", "1.0"), "sglang": ("sglang", "0.4.5"),
}  # fmt: skip
"""part of a source's name -> the engine and release it describes"""
STATIC = ("blogs/quantization-in-TRT-LLM", "examples/benchmark.md")
"""sources that ran gptManagerBenchmark or a runner on one static batch"""
FORMATS = ("fp8", "int8_sq", "int4_awq", "w4a8_awq")
DRAFTS: dict[str, Any] = {"mtp": "mtp", "eagle3": "eagle3", "ngram": "ngram"}
TURN = {"isl": 1024, "osl": 256}
"""lengths of a chat's turn, where a source says only that it is one"""


def printed() -> list[Ratio]:
    """Every printed speed-up that can be expressed and estimated."""
    found = []
    for line in (TRUTH / "speedups.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "published_ratio":
            made = _ratio(record)
            if made is not None:
                found.append(made)
    return found


def _ratio(record: dict[str, Any]) -> Ratio | None:
    known = next((part for part in RELEASES if part in record["source"]), None)
    treated = _treatment(record)
    if known is None or treated is None or not record.get("gpu") or "held under" in record.get("note", ""):
        return None
    if record["metric"] in ("ttft_ms", "itl_ms"):  # at the concurrency that each of the two happened to reach
        return None
    name, release = RELEASES[known]
    before, after = treated
    if known in STATIC:
        before, after = (each.model_copy(update={"batching": "static"}) for each in (before, after))
    one, other = (
        _estimate(record, each, Engine.model_validate({"name": name, "version": release})) for each in (before, after)
    )
    if one is None or other is None:
        return None
    metric = str(record["metric"])
    old, new = one.output_tokens_per_s_per_gpu, other.output_tokens_per_s_per_gpu
    if not old or not new:
        return None
    size = f"batch {record['batch']}" if record.get("batch") else f"{record['isl']}/{record['osl']}"
    what = f"{record['model']} {record['gpu']} {size}"
    return Ratio(record["technique"], name, metric, what, record["speedup"], new / old)


def _treatment(record: dict[str, Any]) -> tuple[Deployment, Deployment] | None:
    technique = record["technique"]
    tp = record.get("tp") or record.get("num_gpus") or 1
    if technique in FORMATS and record["metric"].startswith("throughput"):
        two = re.search(r"TP(\d)", record["baseline"])
        cache = "bf16" if technique in ("int8_sq", "int4_awq") else "fp8"
        plain = Deployment(tensor_parallel=int(two[1]) if two else tp)
        return plain, Deployment.model_validate({"weights": technique, "kv_cache": cache, "tensor_parallel": tp})
    weights = record.get("weights") or ("fp8" if "fp8 weights" in record["baseline"] else "bf16")
    deepseek = {"expert_parallel": tp, "attention_dp": True} if "DeepSeek" in record.get("model", "") else {}
    if technique == "fp8_kv" and (record.get("batch") or record.get("isl")):
        layout = {"weights": "nvfp4" if deepseek else weights, "tensor_parallel": tp, **deepseek}
        pair = [Deployment.model_validate({**layout, "kv_cache": cache}) for cache in ("bf16", "fp8")]
        return pair[0], pair[1]
    if technique in DRAFTS and record.get("batch"):
        length = record.get("draft_len") or (5 if technique == "ngram" else 3)
        tokens = record.get("acceptance_length")
        rate = acceptance_rate(tokens, length) if tokens else None
        draft = Speculation(method=DRAFTS[technique], draft_len=length, acceptance=rate)
        plain = Deployment.model_validate(
            {"weights": weights, "tensor_parallel": tp, "kv_cache": "fp8" if weights != "bf16" else "bf16"}
        )
        return plain, plain.model_copy(update={"speculation": draft})
    return None


def _estimate(record: dict[str, Any], deployment: Deployment, engine: Engine) -> Estimate | None:
    known, where = model(record["model"]), gpu(record["gpu"], 8)
    if known is None or where is None:
        return None
    isl, osl = record.get("isl") or TURN["isl"], record.get("osl") or TURN["osl"]
    concurrency = record.get("batch") or {"same concurrency": 3072.0}.get(record.get("note", "")[:16])
    load = Load(isl=isl, osl=osl, concurrency=concurrency, requests=None if concurrency else 1000)
    found = estimate(known, where, deployment, load, engine)
    return found if found.fits else None


if __name__ == "__main__":
    for ratio in printed():
        side = "right side" if ratio.right_side else "WRONG side"
        print(f"{ratio.technique:10s} {ratio.published:5.2f} estimated {ratio.estimated:5.2f} {side} {ratio.what}")
