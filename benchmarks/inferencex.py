"""How InferenceX started its servers: the settings that its records do not hold but its public scripts do.

SemiAnalysisAI/InferenceX, benchmarks/: *_trt*.sh @dce7e6f8 (2025-10-12, Llama-3.3-70B), @e06929c7 (2025-11-02), @64af5a77
(2026-01-21, at least 8192 tokens a step), @ec7bafaa (2026-01-29, DeepSeek-R1 in FP8 waits to fill its steps); SGLang:
dsr1_fp4_b200, dsr1_fp8_b200, qwen3.5_* @12ba0ae0 (2026-03-25); requests before the run that warm the server: @d053ae24
(2026-01-21).
"""

from __future__ import annotations

from typing import Any

LONGER_STEPS = "2026-01-21"
WARMED = "2026-01-21"
FP8_RENEWED = "2026-01-29"


def is_warm(record: dict[str, Any]) -> bool:
    """Whether the server had seen requests before those that were counted; records without a date are later."""
    return (record.get("date") or WARMED) >= WARMED


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
    if not record["gpu"].startswith("b") or not any(name in record["model"] for name in ("DeepSeek-R1", "Qwen3.5")):
        return {}
    return {"poll_steps": 30 if record["concurrency"] >= 16 else 10}
