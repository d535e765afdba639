"""How InferenceX started its servers: the settings that its records do not hold but its public scripts do.

SemiAnalysisAI/InferenceX, benchmarks/: *_trt*.sh @dce7e6f8 (2025-10-12, Llama-3.3-70B), @e06929c7 (2025-11-02), @64af5a77
(2026-01-21, at least 8192 tokens a step), @ec7bafaa (2026-01-29, DeepSeek-R1 in FP8 waits to fill its steps); SGLang:
dsr1_*_b200, glm5_fp8_*, glm5_nvfp4_b200 and qwen3.5_* from @7daaa8bb (2025-11-10) to @e8924a6a (2026-04-18); requests before
the run that warm the server: @d053ae24 (2026-01-21).
"""

from __future__ import annotations

from typing import Any

LONGER_STEPS = "2026-01-21"
WARMED = "2026-01-21"
FP8_RENEWED = "2026-01-29"
SGLANG = (("2026-03-29", "0.5.9"), ("9999", "0.5.10"))
"""day from which InferenceX's nightly images of SGLang (nvidia-master.yaml: 20260216, glm5-hopper, 20260317; then 20260328,
20260402) had what came with 0.5.10 (2026-04-06)"""


def is_warm(record: dict[str, Any]) -> bool:
    """Whether the server had seen requests before those that were counted; records without a date are later."""
    return (record.get("date") or WARMED) >= WARMED


def released(record: dict[str, Any]) -> str:
    """The release that served: that of the record, for SGLang's nightly images the one that they became part of."""
    named = str(record.get("backend", "")).split(" ")[-1].removeprefix("v")
    if record["engine"] == "SGLang" and not named[:1].isdigit() and named != "None":
        return next(release for day, release in SGLANG if (record.get("date") or "") < day)
    return named


def server_settings(record: dict[str, Any]) -> dict[str, Any]:
    """Fields of Deployment; none for records of others, or of models without a script."""
    if "InferenceX" not in record["source"]:
        return {}
    known = {"TensorRT-LLM": _tensorrt_llm, "SGLang": _sglang}.get(record["engine"])
    return known(record) if known else {}


def _tensorrt_llm(record: dict[str, Any]) -> dict[str, Any]:
    model, date = record["model"], record.get("date") or ""
    isl, osl, clients = record["isl"], record["osl"], record["concurrency"]
    if "Llama-3.3-70B" in model:
        waits = {"batch_wait_steps": 20, "batch_wait_fill": 0.9} if isl == osl == 1024 and record["tp"] < 8 else {}
        return {"max_num_tokens": 16384, **waits}
    if "gpt-oss" in model:
        return {"max_num_tokens": 20000}
    if "DeepSeek-R1" not in model:
        return {}
    tokens = (clients + isl + 64 + 63) // 64 * 64
    settings: dict[str, Any] = {"max_num_tokens": max(tokens, 8192) if date >= LONGER_STEPS else tokens}
    if record["weights_dtype"] == "fp8" and date >= FP8_RENEWED and isl == osl == 1024 and clients >= 64:
        settings |= {"batch_wait_steps": 40, "batch_wait_fill": 0.8}
    return settings


def _sglang(record: dict[str, Any]) -> dict[str, Any]:
    """Tokens of a step (--chunked-prefill-size) and steps between two looks at the queue (--scheduler-recv-interval)."""
    model, four_bits, hopper = record["model"], record["weights_dtype"] in ("nvfp4", "fp4"), record["gpu"].startswith("h")
    slow = {"poll_steps": 30 if record["concurrency"] >= 16 else 10}
    if hopper:  # SGLang's default for sparse attention there: 16 bits (server_args.py, _set_default_nsa_kv_cache_dtype)
        return {"kv_cache": "bf16"} if "GLM-5" in model else {}
    if "GLM-5" in model:
        # in four bits nothing was chosen before 2026-04-09 (perf-changelog.yaml, pull 1011), the cache neither
        return {"max_num_tokens": 131072, "kv_cache": "bf16"} if four_bits else {"max_num_tokens": 32768}
    if "DeepSeek-R1" in model:
        return {"max_num_tokens": 16384 if four_bits else 32768 if record["tp"] == 8 else 8192, **slow}
    if "Qwen3.5" in model:
        if record["gpu"] == "b300" and record["weights_dtype"] == "fp8":
            return {"max_num_tokens": 16384, "poll_steps": 10}
        return {"max_num_tokens": 32768, **slow}
    return {}
