"""TensorRT-LLM's serving files: LLM API YAML, launch and benchmark commands, a Python snippet."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from advisor.errors import NotPossible
from advisor.executor.emitting.engine_schema import class_of, command_options, engine_schema, known_version, validate
from advisor.executor.emitting.settings import Section, Setting, annotated, comment, plain, reasons
from advisor.executor.emitting.site import HOST, PORT, Site, switch_off
from advisor.executor.speculating.ngrams import SIZES
from advisor.types import Deployment, Plan, Profile, Speculation

CONFIG = "trtllm.yaml"
DEFAULT_TOKENS = 8192
"""max_num_tokens of trtllm-serve when nothing sets it"""
DEFAULT_BATCH = 2048
"""max_batch_size of trtllm-serve when nothing sets it"""
DEFAULT_GRAPHS = 128
"""the largest batch that a CUDA graph is made for when nothing sets it"""
CACHE_SHARE = 0.9
"""kv_cache_config.free_gpu_memory_fraction of both versions when nothing sets it"""
_METHODS = {
    "1.2.1": {"ngram": "NGram", "draft": "DraftTarget", "eagle3": "Eagle", "mtp": "MTP"},
    "1.3": {"ngram": "NGram", "draft": "Draft_Target", "eagle3": "Eagle3", "mtp": "MTP"},
}


def llm_options(plan: Plan, profile: Profile) -> Section:
    """The LLM API arguments of a plan, each with its reason, valid for the profile's engine version.

    Raises NotPossible: a format or combination that this version does not have.
    """
    version = known_version(profile.engine.version)
    options = _options(plan, profile, version)
    problems = validate(plain(options), version)
    if problems:
        listed = "; ".join(f"{path} {message}" for path, message in problems[:3])
        raise NotPossible(
            f"TensorRT-LLM {profile.engine.version} does not take this configuration: {listed}",
            where=CONFIG,
            hint="choose another --engine-version, or exclude that remedy with an overlay",
        )
    return options


def options_file(plan: Plan, profile: Profile, site: Site) -> str:
    """The YAML for `trtllm-serve --config`."""
    source = engine_schema(profile.engine.version)["source"]
    head = [
        f"TensorRT-LLM {profile.engine.version}: {profile.model.name} on {site.ranks} x {profile.gpu.name} a replica,"
        f" {site.replicas} {'replica' if site.replicas == 1 else 'replicas'}",
        f"weights: {site.model_note}",
        f"checked against the arguments in {source['repo']} {source['path']} @ {source['commit'][:8]}",
        *_warnings(plan, profile),
    ]
    return "".join(f"# {comment(line)}\n" for line in head) + annotated(llm_options(plan, profile))


def serve_arguments(profile: Profile, site: Site, *, host: str = HOST, port: int = PORT, config: str = CONFIG) -> list[str]:
    """`trtllm-serve …` for one replica; everything else is in the YAML. Raises NotPossible for an option that is not there."""
    known = command_options(profile.engine.version, "trtllm-serve")
    command = ["trtllm-serve", site.model, "--host", host, "--port", str(port), "--config", config]
    if "--served_model_name" in known:
        command += ["--served_model_name", site.served_name]
    return _known(command, known)


def bench_commands(plan: Plan, profile: Profile, site: Site) -> list[list[str]]:
    """The two `trtllm-bench` commands: make a data set of the profile's lengths, and run it on one replica."""
    deployment, traffic = plan.deployment, profile.traffic
    group = ["trtllm-bench", "--model", site.served_name if site.local else site.model]
    group += ["--model_path", site.model] if site.local else []
    deviation = [0, 0]
    if len(traffic.lengths) > 1:
        deviation = [round(statistics.pstdev(pair[at] for pair in traffic.lengths)) for at in (0, 1)]
    concurrency = None if traffic.concurrency is None else math.ceil(traffic.concurrency / deployment.replicas)
    requests = min(max(64, 10 * (concurrency or 200)), 4096)
    lengths = ["--num-requests", requests]
    lengths += ["--input-mean", round(traffic.isl.mean), "--input-stdev", deviation[0]]
    lengths += ["--output-mean", max(1, round(traffic.osl.mean)), "--output-stdev", deviation[1]]
    run = ["--dataset", "dataset.jsonl", "--tp", deployment.tensor_parallel, "--pp", deployment.pipeline_parallel]
    run += ["--ep", deployment.expert_parallel] if profile.model.moe else []
    run += ["--concurrency", concurrency] if concurrency else []
    run += ["--streaming", "--extra_llm_api_options", CONFIG, "--report_json", "bench.json"]
    version = profile.engine.version
    head = _known(group, command_options(version, "trtllm-bench", "group"))
    made = _known(["--output", "dataset.jsonl"], command_options(version, "trtllm-bench", "prepare-dataset"))
    spread = _known(lengths, command_options(version, "trtllm-bench", "prepare-dataset", "token-norm-dist"))
    ran = _known(run, command_options(version, "trtllm-bench", "throughput"))
    return [[*head, "prepare-dataset", *made, "token-norm-dist", *spread], [*head, "throughput", *ran]]


def python_snippet(plan: Plan, profile: Profile, site: Site) -> str:
    """The same arguments for the Python LLM API."""
    version = known_version(profile.engine.version)
    lines, classes = [], set()
    for key, entry in llm_options(plan, profile).items():
        if isinstance(entry, Setting):
            lines.append(f"        {key}={entry.value!r},  # {comment(entry.why)}")
            continue
        name = class_of(version, key, plain(entry))
        classes.add(name)
        lines.append(f"        {key}={name}(")
        for field, inner in entry.items():
            if field != "decoding_type" and isinstance(inner, Setting):  # it is in the class's name
                lines.append(f"            {field}={inner.value!r},  # {comment(inner.why)}")
        lines.append("        ),")
    return "\n".join(
        [
            f"# TensorRT-LLM {comment(profile.engine.version)}, Python LLM API: the arguments of {CONFIG}",
            "",
            "from tensorrt_llm import LLM, SamplingParams",
            f"from tensorrt_llm.llmapi.llm_args import {', '.join(sorted(classes))}",
            "",
            'if __name__ == "__main__":',
            "    llm = LLM(",
            f"        model={site.model!r},",
            *lines,
            "    )",
            '    for output in llm.generate(["Hello"], SamplingParams(max_tokens=32)):',
            "        print(output.outputs[0].text)",
            "",
        ]
    )


def quoted(command: Sequence[str]) -> str:
    """A command line for a shell, every value quoted where it needs it."""
    return " ".join(shlex.quote(part) for part in command)


def _options(plan: Plan, profile: Profile, version: str) -> dict[str, Any]:
    deployment, why = plan.deployment, reasons(plan)

    def told(value: Any, field: str, default: Any = None) -> Setting:
        return Setting(value, why.get(field) or ("engine default" if value == default else "plan"))

    options: dict[str, Any] = {
        "tensor_parallel_size": told(deployment.tensor_parallel, "tensor_parallel", 1),
        "pipeline_parallel_size": told(deployment.pipeline_parallel, "pipeline_parallel", 1),
    }
    if profile.model.moe:
        options["moe_expert_parallel_size"] = told(deployment.expert_parallel, "expert_parallel")
    options["enable_attention_dp"] = told(deployment.attention_dp, "attention_dp", False)
    if deployment.tensor_parallel * deployment.pipeline_parallel > profile.gpu.gpus_per_node:
        options["gpus_per_node"] = Setting(profile.gpu.gpus_per_node, "the machines")
    batch = deployment.max_batch_size
    if batch is not None:
        options["max_batch_size"] = told(batch, "max_batch_size", DEFAULT_BATCH)
        if deployment.attention_dp:
            batch = math.ceil(batch / deployment.tensor_parallel)
            options["max_batch_size"] = Setting(batch, f"plan: {deployment.max_batch_size} over the ranks of attention DP")
    if deployment.max_num_tokens is not None:
        options["max_num_tokens"] = told(deployment.max_num_tokens, "max_num_tokens", DEFAULT_TOKENS)
    options["enable_chunked_prefill"] = told(deployment.chunked_prefill, "chunked_prefill", False)
    if deployment.batch_wait_steps:
        options["batch_wait_timeout_iters"] = told(deployment.batch_wait_steps, "batch_wait_steps")
        options["batch_wait_max_tokens_ratio"] = told(deployment.batch_wait_fill, "batch_wait_fill")
    options["kv_cache_config"] = {
        "dtype": Setting(_cache_dtype(plan, profile), why.get("kv_cache", "plan: as the checkpoint says")),
        "enable_block_reuse": told(deployment.prefix_reuse, "prefix_reuse")
        if "prefix_reuse" in why
        else Setting(True, "engine default: costs nothing where no prefix repeats"),
        "free_gpu_memory_fraction": Setting(CACHE_SHARE, "engine default: of what weights and activations leave free"),
    }
    policy = "STATIC_BATCH" if deployment.batching == "static" else deployment.scheduler_policy.upper()
    reason = why.get("scheduler_policy") or why.get("batching") or ("engine default" if policy[0] == "G" else "plan")
    in_flight = "" if deployment.batching == "static" else "; batching is in-flight"
    options["scheduler_config"] = {"capacity_scheduler_policy": Setting(policy, reason + in_flight)}
    if deployment.cuda_graphs:
        graphs: dict[str, Setting] = {"enable_padding": Setting(True, why.get("cuda_graphs", "plan"))}
        sizes = _graph_sizes(plan, batch)
        if sizes is not None:
            graphs["max_batch_size"] = sizes
        options["cuda_graph_config"] = graphs
    else:
        options["cuda_graph_config"] = told(None, "cuda_graphs")
    if deployment.speculation is not None:
        if deployment.pipeline_parallel > 1 and deployment.speculation.method in ("mtp", "eagle3"):
            raise NotPossible(
                f"TensorRT-LLM does not run {deployment.speculation.method} with pipeline parallelism",
                where="speculation, pipeline_parallel",
                hint="its feature matrix says no; use tensor parallelism alone, or no speculation",
            )
        options["speculative_config"] = _speculation(
            deployment, deployment.speculation, version, why.get("speculation", "plan")
        )
    return options


def _graph_sizes(plan: Plan, batch: int | None) -> Setting | None:
    """The largest batch with a graph: max_batch_size, else the requests that will be in flight; None: 128 will do."""
    if batch is not None:
        return Setting(batch, "max_batch_size: graphs up to the largest batch")
    deployment = plan.deployment
    ranks = deployment.replicas * (deployment.tensor_parallel if deployment.attention_dp else 1)
    running = math.ceil((plan.expected.concurrency or 0) / ranks)
    if running <= DEFAULT_GRAPHS:
        return None
    return Setting(
        min(2 ** math.ceil(math.log2(running)), DEFAULT_BATCH), f"plan: about {running:,} requests in flight at once"
    )


def _cache_dtype(plan: Plan, profile: Profile) -> str:
    """auto keeps what the checkpoint says; a dtype that contradicts it is an error of the loader."""
    wanted, quantized = plan.deployment.kv_cache, profile.model.quantized
    stored = quantized.kv_cache if quantized and plan.deployment.weights == quantized.weights else None
    if wanted == "int8":
        raise NotPossible(
            "TensorRT-LLM's PyTorch backend has no INT8 KV cache",
            where="kv_cache",
            hint="it takes fp8 and nvfp4; INT8 was the old TensorRT backend's",
        )
    if stored not in (None, wanted):
        raise NotPossible(
            f"the checkpoint's KV cache is {stored}, the plan's {wanted}",
            where="kv_cache",
            hint="the loader refuses a KV dtype that contradicts the checkpoint: plan with its dtype, or export it again",
        )
    return "auto" if wanted in ("bf16", stored) else wanted


def _speculation(deployment: Deployment, speculation: Speculation, version: str, why: str) -> dict[str, Setting]:
    """speculative_config of one replica, by its names in this version."""
    found: dict[str, Any] = {"decoding_type": _METHODS[version][speculation.method], "max_draft_len": speculation.draft_len}
    if speculation.method == "mtp":
        found["num_nextn_predict_layers"] = speculation.draft_len
    if speculation.method == "ngram":
        found |= {"max_matching_ngram_size": SIZES["tensorrt-llm"].longest, "is_public_pool": False}
    if speculation.method in ("draft", "eagle3"):
        if not speculation.draft_model:
            raise NotPossible(
                f"speculation by {speculation.method} needs a draft model, and the plan names none",
                where="speculation.draft_model",
                hint="name one, or speculate with ngram",
            )
        found["speculative_model"] = speculation.draft_model
    limit = switch_off(deployment)
    if limit is not None:
        found["max_concurrency"] = limit
    notes = {"max_concurrency": "; switched off above", "is_public_pool": "; the pool that requests share is never pruned"}
    return {key: Setting(value, why + notes.get(key, "")) for key, value in found.items()}


def _warnings(plan: Plan, profile: Profile) -> list[str]:
    """What the reader of the file must know before starting it."""
    deployment = plan.deployment
    tokens = deployment.max_num_tokens or DEFAULT_TOKENS
    found = []
    if not deployment.chunked_prefill and profile.traffic.isl.max > tokens:
        found.append(
            f"careful: prompts of more than {tokens:,} tokens (max_num_tokens) are refused without chunked prefill;"
            f" the longest here has {profile.traffic.isl.max:,.0f}"
        )
    if deployment.batching == "static":
        found.append("careful: STATIC_BATCH is kept for comparison only; in-flight batching is the default")
    if deployment.kv_cache == "nvfp4":
        found.append("careful: an NVFP4 KV cache needs a checkpoint exported for it (ModelOpt --kv_cache_qformat nvfp4)")
    return found


def _known(command: Sequence[object], options: Mapping[str, Any]) -> list[str]:
    parts = [str(part) for part in command]
    for part in parts:
        if part.startswith("--") and part not in options:
            raise NotPossible(
                f"{part} is not an option of this version", where=parts[0], hint="choose another --engine-version"
            )
    return parts
