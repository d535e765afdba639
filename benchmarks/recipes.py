"""Where our choice agrees with TensorRT-LLM's tuned configurations, and where it differs: writes docs/recipes.md.

    python benchmarks/recipes.py RECIPES.json > docs/recipes.md

RECIPES.json holds the tuned files with model, GPU, lengths and concurrency (NVIDIA/TensorRT-LLM examples/configs and
NVIDIA/srt-slurm). Taken are those that serve prefill and decode together and name all four. Each is planned for with the
same model, GPUs, lengths (all requests alike, as in the recipes) and concurrency and the goal throughput, and both are compared
as LLM API arguments, key by key. The reasons are the planner's own: what it says of the remedy that the recipe has and our plan
has not, or the other way round.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from advisor import pipeline
from advisor.errors import AdvisorError
from advisor.executor.emitting.settings import plain
from advisor.executor.emitting.trtllm import llm_options
from advisor.types import Report

MODELS = {
    "nvidia/DeepSeek-R1-0528-FP4-v2": "deepseek-ai/DeepSeek-R1-0528",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8": "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
}
FIELDS = {
    "tensor parallel": ("tensor_parallel_size", 1),
    "expert parallel": ("moe_expert_parallel_size", 1),
    "attention DP": ("enable_attention_dp", False),
    "KV dtype": ("kv_cache_config.dtype", "auto"),
    "chunked prefill": ("enable_chunked_prefill", False),
    "speculation": ("speculative_config.decoding_type", "none"),
    "draft length": ("speculative_config.num_nextn_predict_layers", 0),
    "scheduler": ("scheduler_config.capacity_scheduler_policy", "GUARANTEED_NO_EVICT"),
    "CUDA graphs": ("cuda_graph_config", None),
}
REMEDY = {
    "attention DP": "attention-dp",
    "expert parallel": "expert-parallel",
    "KV dtype": "fp8-kv-cache",
    "chunked prefill": "chunked-prefill",
    "speculation": "mtp",
    "draft length": "mtp",
    "scheduler": "max-utilization",
    "tensor parallel": "tensor-parallel",
}
"""field -> how the id of the rule that changes it ends"""


def main() -> None:
    records = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["records"]
    taken = [
        r for r in records if r["role"] == "aggregated" and all(r[k] for k in ("model", "gpu", "isl", "osl", "concurrency"))
    ]
    agreed: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    rows, skipped, seconds = [], [], 0.0
    for record in taken:
        start = time.perf_counter()
        try:
            report, config = planned(record)
        except AdvisorError as error:
            skipped.append(f"{record['path']}: {error.what}")
            continue
        seconds += time.perf_counter() - start
        same, different = [], []
        for name, (key, default) in FIELDS.items():
            theirs, ours = value(record["config"], key, default), value(config, key, default)
            asked[name] += 1
            agreed[name] += theirs == ours
            (same if theirs == ours else different).append((name, theirs, ours))
        rows.append((record, report, different))
    print(page(rows, agreed, asked, skipped, len(records)), end="")
    print(
        f"{len(rows)} planned in {seconds:.1f} s, {sum(agreed.values())} of {sum(asked.values())} values agree", file=sys.stderr
    )


def planned(record: dict[str, Any]) -> tuple[Report, dict[str, Any]]:
    """Our plan for a record's circumstances, and its LLM API arguments."""
    concurrency = int(re.search(r"\d+", str(record["concurrency"]))[0])  # type: ignore[index]
    name = record["model"].removeprefix("/shared/models/")
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as trace:  # the recipes' requests are all of one length
        lengths = {"input_length": int(record["isl"]), "output_length": int(record["osl"])}
        trace.writelines(f"{json.dumps({'timestamp': second, **lengths})}\n" for second in range(32))
        trace.flush()
        profile = pipeline.profile(
            MODELS.get(name, name),
            gpu=record["gpu"].lower(),
            gpus=record["num_gpus"],
            traffic=trace.name,
            concurrency=concurrency,
            engine_version="1.3",
            evidence="none",
        )
    report = pipeline.advise(profile)
    return report, plain(llm_options(report.plan, profile))


def value(config: dict[str, Any], key: str, default: Any) -> Any:
    """A value by its dotted key; what is not set is the engine's default; a section counts as set or not."""
    found: Any = config
    if key == "speculative_config.num_nextn_predict_layers":
        drafts = config.get("speculative_config") or {}
        return drafts.get("num_nextn_predict_layers") or drafts.get("max_draft_len") or default
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if key == "cuda_graph_config":
        return "off" if key in config and found is None else "on"
    return default if found is None else found


def why(report: Report, field: str) -> str:
    """What the plan says of the rule that changes a field: taken, left out with its reason, or the rule's verdict."""
    ending = "/" + REMEDY.get(field, "-")
    for step in report.plan.steps:
        if step.rule.endswith(ending):
            return f"our plan takes {step.rule}"
    for rejected in report.plan.rejected:
        if rejected.rule.endswith(ending):
            return f"{rejected.rule}: {rejected.reason}"
    for finding in report.findings:
        if finding.rule.endswith(ending):
            failed = [f"{line.condition} (is {shown(line.left)})" for line in finding.evidence if not line.holds]
            return f"{finding.rule} {finding.verdict}, not in the plan" + (f": {failed[0]}" if failed else "")
    return "no rule changes it: the planner takes the size that gives most for the goal"


def shown(fact: object) -> str:
    """A fact with as many digits as tell."""
    return f"{fact:.3g}" if isinstance(fact, float) else str(fact)


def page(
    rows: list[tuple[dict[str, Any], Report, list[tuple[str, Any, Any]]]],
    agreed: Counter[str],
    asked: Counter[str],
    skipped: list[str],
    total: int,
) -> str:
    """The page, in Markdown."""
    lines = [
        "# Our choice beside the tuned recipes",
        "",
        "Generated by `python benchmarks/recipes.py RECIPES.json`; edit that, not this. The recipes are NVIDIA's tuned files",
        "(TensorRT-LLM examples/configs, srt-slurm), each with model, GPU, lengths and concurrency. Compared are those where",
        f"one engine does prefill and decode: {len(rows)} of {total} files. The others are roles of disaggregated deployments,",
        "which are not planned here, or do not say all four. The goal is throughput and all requests are as long as the recipe",
        "says; the format of the weights is the checkpoint's business and not in these files.",
        "",
        "| field | agree | of |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {agreed[name]} | {asked[name]} |" for name in FIELDS),
        f"| all | {sum(agreed.values())} | {sum(asked.values())} |",
        "",
        "| model | GPUs | in/out | concurrency | our weights | our replicas | differs (theirs → ours) |",
        "| --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    for record, report, different in rows:
        deployment = report.plan.deployment
        differs = "; ".join(f"{name} {theirs} → {ours}" for name, theirs, ours in different) or "nothing"
        lines.append(
            f"| {record['model']} | {record['num_gpus']} x {record['gpu']} | {record['isl']}/{record['osl']}"
            f" | {record['concurrency']} | {deployment.weights} | {deployment.replicas} | {differs} |"
        )
    lines += ["", "## Why they differ", ""]
    for name in FIELDS:
        reasons = Counter(why(report, name) for _, report, different in rows if any(field == name for field, _, _ in different))
        lines += [f"- {name}, {count} x: {reason}" for reason, count in sorted(reasons.items())]
    if skipped:
        lines += ["", "## Not planned", "", *(f"- {line}" for line in skipped)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
