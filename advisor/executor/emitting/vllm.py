"""vLLM's serving command for a plan.

The options are those of `vllm serve`, all of them under the same names from 0.20 (docs.vllm.ai/en/v0.20.0) to 0.32 (installed).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from advisor.errors import NotPossible
from advisor.executor.emitting.settings import reasons
from advisor.executor.emitting.site import HOST, PORT, Site, switch_off
from advisor.executor.speculating.ngrams import SIZES
from advisor.types import Deployment, Engine, Plan, Profile, Speculation

SCHEDULE_SINCE = (0, 24)
FITTING_SINCE = (0, 14)
"""--max-model-len auto: the model's context, or as much of it as the cache holds, where an engine without it would not start
(vllm-project/vllm pull 29431, merged in December 2025)"""
MAX_LENGTH = "--max-model-len"
MEMORY_SHARE = 0.9
"""--gpu-memory-utilization: what the estimate counts on (profiles/constants); vLLM's own default is 0.92 in 0.32"""

FRONT_END_TOKENS_S, ONE_FRONT_END = 2100, 6000
"""output tokens/s that each of four API servers brought out, and up to which one was enough: an 8B in FP8 on an H100 with vLLM
0.24.0 gave 6,680 tokens/s at 256 requests through one and 8,420 through four (measured, docs/evidence.md)"""
MOST_FRONT_ENDS = 8


def serve_arguments(plan: Plan, profile: Profile, site: Site, *, host: str = HOST, port: int = PORT) -> list[tuple[str, ...]]:
    """`vllm serve …` in groups of one option with its value. Raises NotPossible for what vLLM does not have."""
    deployment = plan.deployment
    if deployment.kv_cache not in ("bf16", "fp8"):
        raise NotPossible(
            f"vLLM has no {deployment.kv_cache} KV cache", where="kv_cache", hint="it takes auto and fp8; plan for TensorRT-LLM"
        )
    if deployment.batching == "static":
        raise NotPossible(
            "vLLM always batches in flight", where="batching", hint="emulate static batching in the load generator"
        )
    groups: list[tuple[str, ...]] = [("vllm", "serve", site.model), ("--host", host), ("--port", str(port))]
    groups.append(("--served-model-name", site.served_name))
    ranks = str(deployment.tensor_parallel)
    if deployment.attention_dp:
        groups += [("--data-parallel-size", ranks), ("--tensor-parallel-size", "1")]
    else:
        groups.append(("--tensor-parallel-size", ranks))
    if deployment.pipeline_parallel > 1:
        groups.append(("--pipeline-parallel-size", str(deployment.pipeline_parallel)))
    if profile.model.moe and deployment.expert_parallel > 1:
        groups.append(("--enable-expert-parallel",))
    if deployment.max_batch_size is not None:
        ranks_apart = deployment.tensor_parallel if deployment.attention_dp else 1
        groups.append(("--max-num-seqs", str(math.ceil(deployment.max_batch_size / ranks_apart))))
    if deployment.max_num_tokens is not None:
        groups.append(("--max-num-batched-tokens", str(deployment.max_num_tokens)))
    if _version(profile.engine) >= FITTING_SINCE:
        groups.append((MAX_LENGTH, "auto"))
    groups.append(("--kv-cache-dtype", "fp8" if deployment.kv_cache == "fp8" else "auto"))
    groups.append(("--gpu-memory-utilization", str(MEMORY_SHARE)))
    servers = front_ends(plan)
    if servers > 1:
        groups.append(("--api-server-count", str(servers)))
    why = reasons(plan)
    if "chunked_prefill" in why:
        groups.append(("--enable-chunked-prefill" if deployment.chunked_prefill else "--no-enable-chunked-prefill",))
    if "prefix_reuse" in why:
        groups.append(("--enable-prefix-caching" if deployment.prefix_reuse else "--no-enable-prefix-caching",))
    if not deployment.cuda_graphs:
        groups.append(("--enforce-eager",))
    if deployment.speculation is not None:
        groups.append(("--speculative-config", json.dumps(_speculation(deployment, deployment.speculation, profile.engine))))
    return groups


def front_ends(plan: Plan) -> int:
    """API servers that one replica's output tokens want; 1 under attention-DP, where vLLM has one a rank by default."""
    rate = (plan.expected.output_tokens_per_s or 0.0) / plan.deployment.replicas
    if rate <= ONE_FRONT_END or plan.deployment.attention_dp:
        return 1
    return min(MOST_FRONT_ENDS, math.ceil(rate / FRONT_END_TOKENS_S))


def why_of(plan: Plan) -> dict[str, str]:
    """Option -> the rule or reason it comes from."""
    why = reasons(plan)
    fields = {
        "--tensor-parallel-size": "tensor_parallel",
        "--data-parallel-size": "attention_dp",
        "--pipeline-parallel-size": "pipeline_parallel",
        "--enable-expert-parallel": "expert_parallel",
        "--max-num-seqs": "max_batch_size",
        "--max-num-batched-tokens": "max_num_tokens",
        "--kv-cache-dtype": "kv_cache",
        "--enable-chunked-prefill": "chunked_prefill",
        "--no-enable-chunked-prefill": "chunked_prefill",
        "--enable-prefix-caching": "prefix_reuse",
        "--no-enable-prefix-caching": "prefix_reuse",
        "--enforce-eager": "cuda_graphs",
        "--speculative-config": "speculation",
    }
    found = {option: why.get(field, "plan") for option, field in fields.items()}
    return found | {
        "--gpu-memory-utilization": "what the estimate counts on",
        "--api-server-count": "one API server brought out 6,680 tokens/s of an 8B, four 8,420 (measured on one H100's host)",
        MAX_LENGTH: "the model's context, or as much of it as the cache holds",
    }


def notes(plan: Plan, engine: Engine) -> list[str]:
    """What of a plan vLLM has no option for."""
    deployment = plan.deployment
    found = ["not checked against an argument schema: none is kept here for vLLM"]
    if deployment.scheduler_policy == "max_utilization":
        found.append("max_utilization has no option: vLLM admits what fits now and preempts when the cache runs out")
    if deployment.speculation is not None and deployment.speculation.method in ("draft", "mtp"):
        found.append(
            "the method's name is that of vLLM in 2026 (vllm/config/speculative.py @ 002e77c1); older ones may lack it"
        )
    limit = switch_off(deployment)
    if limit is not None:
        if _has_schedule(deployment, engine):
            found.append(
                f"above {limit} requests drafts are off; the schedule leaves piecewise CUDA graphs (vllm/config/vllm.py)"
            )
        else:
            found.append(
                f"speculation is not switched off above {limit} requests: the schedule for it came with 0.24 and is not there"
                " with data parallelism; disable_by_batch_size has done nothing since 0.10 (vllm-project/vllm pull 35060)"
            )
    return found


def _has_schedule(deployment: Deployment, engine: Engine) -> bool:
    """num_speculative_tokens_per_batch_size: vllm-project/vllm pull 32374, in 0.24; refused with data parallelism."""
    return _version(engine) >= SCHEDULE_SINCE and not deployment.attention_dp


def _version(engine: Engine) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", engine.version)[:2])


def _speculation(deployment: Deployment, speculation: Speculation, engine: Engine) -> dict[str, Any]:
    if speculation.method in ("draft", "eagle3") and not speculation.draft_model:
        raise NotPossible(
            f"speculation by {speculation.method} needs a draft model, and the plan names none",
            where="speculation.draft_model",
            hint="name one, or speculate with ngram",
        )
    found: dict[str, Any] = {"method": {"draft": "draft_model"}.get(speculation.method, speculation.method)}
    if speculation.draft_model and speculation.method in ("draft", "eagle3"):
        found["model"] = speculation.draft_model
    found["num_speculative_tokens"] = speculation.draft_len
    if speculation.method == "ngram":
        found |= {"prompt_lookup_min": SIZES["vllm"].shortest, "prompt_lookup_max": SIZES["vllm"].longest}
    limit = switch_off(deployment)
    if limit is not None and _has_schedule(deployment, engine):
        found["num_speculative_tokens_per_batch_size"] = [[1, limit, speculation.draft_len], [limit + 1, limit + 1, 0]]
    return found
