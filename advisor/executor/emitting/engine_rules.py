"""What TensorRT-LLM checks across the fields of its LLM arguments, beyond their types: one function a rule.

Each takes the configuration (as in the YAML) and yields what is wrong as (path, message). The rules were read from
tensorrt_llm/llmapi/llm_args.py of the versions named in profiles/engines; the text of each stands there, with those that
need the machine, the checkpoint or the file system and are not checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
Problems = Iterator[tuple[str, str]]


def cuda_graph_sizes(config: Config) -> Problems:
    """batch_sizes and max_batch_size agree."""
    graphs = _section(config, "cuda_graph_config")
    sizes, largest = graphs.get("batch_sizes"), graphs.get("max_batch_size")
    if sizes and largest and largest != max(sizes):
        yield "cuda_graph_config.max_batch_size", f"is {largest}, but the largest of batch_sizes is {max(sizes)}"


def load_balancer_slots(config: Config) -> Problems:
    """num_slots divides by the expert-parallel size."""
    balancer = _section(config, "moe_config").get("load_balancer")
    experts = config.get("moe_expert_parallel_size") or 1
    slots = balancer.get("num_slots") if isinstance(balancer, Mapping) else None
    if isinstance(slots, int) and experts > 0 and slots % experts:
        yield "moe_config.load_balancer.num_slots", f"is {slots}, which does not divide by moe_expert_parallel_size {experts}"


def attention_dp_balance(config: Config) -> Problems:
    """enable_balance needs waits that are not negative."""
    balance = _section(config, "attention_dp_config")
    if balance.get("enable_balance"):
        for name in ("batching_wait_iters", "timeout_iters"):
            value = balance.get(name)
            if value is not None and value < 0:
                yield f"attention_dp_config.{name}", f"is {value}; with enable_balance it must be 0 or more"


def helix_blocks(config: Config) -> Problems:
    """Helix context parallelism cuts at KV-cache blocks."""
    helix = _section(config, "cp_config")
    if str(helix.get("cp_type", "")).upper().endswith("HELIX"):
        blocks, cache = helix.get("tokens_per_block"), _section(config, "kv_cache_config").get("tokens_per_block", 32)
        if blocks is not None and blocks != cache:
            yield "cp_config.tokens_per_block", f"is {blocks}, but kv_cache_config.tokens_per_block is {cache}"


def ray_settings(config: Config) -> Problems:
    """Ray's settings need Ray."""
    for name in ("ray_worker_extension_cls", "ray_placement_config"):
        if config.get(name) is not None and config.get("orchestrator_type") != "ray":
            yield name, "needs orchestrator_type: ray"


def kv_cache_dtype(config: Config) -> Problems:
    """Free text to the argument class, but the loader takes three values (INT8 was the old TensorRT backend's)."""
    yield from _kv_cache_dtype(config, ("auto", "fp8", "nvfp4"))


def kv_cache_dtype_packed(config: Config) -> Problems:
    """As kv_cache_dtype, with the packed format of sparse MLA."""
    yield from _kv_cache_dtype(config, ("auto", "fp8", "nvfp4", "fp8_ds_mla"))
    cache = _section(config, "kv_cache_config")
    if cache.get("dtype") == "fp8_ds_mla" and cache.get("enable_kv_pool_rebalance"):
        yield "kv_cache_config.enable_kv_pool_rebalance", "is not possible with dtype fp8_ds_mla"


def tensorrt_only_methods(config: Config) -> Problems:
    """Medusa and Lookahead exist on the TensorRT backend alone."""
    method = _section(config, "speculative_config").get("decoding_type")
    if method in ("Medusa", "Lookahead") and config.get("backend") in (None, "pytorch", "_autodeploy"):
        yield "speculative_config.decoding_type", f"{method} is not there on the PyTorch backend"


def eagle_needs(config: Config) -> Problems:
    """Eagle needs a draft and its length."""
    draft = _section(config, "speculative_config")
    if draft.get("decoding_type") in ("Eagle", "Eagle3"):
        yield from _needs(draft, "max_draft_len", "speculative_model")


def draft_needs(config: Config) -> Problems:
    """Every method but MTP and AUTO needs max_draft_len > 0; a draft model needs its weights."""
    draft = _section(config, "speculative_config")
    method = draft.get("decoding_type")
    if method in ("NGram", "SA", "Draft_Target", "PARD", "DFlash", "DSpark"):
        yield from _needs(draft, "max_draft_len")
    if method == "Draft_Target":
        yield from _needs(draft, "speculative_model")


def dynamic_tree(config: Config) -> Problems:
    """A dynamic tree's size lies between its depth and depth x width."""
    draft = _section(config, "speculative_config")
    if not draft.get("use_dynamic_tree"):
        return
    width, depth, total = draft.get("dynamic_tree_max_topK"), draft.get("max_draft_len"), draft.get("max_total_draft_tokens")
    if not isinstance(width, int) or width <= 0:
        yield "speculative_config.dynamic_tree_max_topK", "must be above 0 with use_dynamic_tree"
    elif isinstance(depth, int) and isinstance(total, int) and not depth <= total <= width * depth:
        yield "speculative_config.max_total_draft_tokens", f"is {total}, not between {depth} and {width * depth}"


def schedule_from_one(config: Config) -> Problems:
    """draft_len_schedule of 1.2.1: batch size 1 is in it and has max_draft_len."""
    yield from _schedule(config, lambda keys: 1)


def schedule_from_smallest(config: Config) -> Problems:
    """draft_len_schedule of the 1.3 line: the smallest batch size has max_draft_len, and max_concurrency is not set."""
    draft = _section(config, "speculative_config")
    if draft.get("draft_len_schedule") and draft.get("max_concurrency") is not None:
        yield "speculative_config.max_concurrency", "and draft_len_schedule exclude each other"
    yield from _schedule(config, min)


def rejection_sampling(config: Config) -> Problems:
    """Only some methods verify by rejection sampling."""
    draft = _section(config, "speculative_config")
    able = ("Eagle", "Eagle3", "MTP", "PARD", "DFlash", "DSpark", "Draft_Target")
    if draft.get("use_rejection_sampling"):
        if draft.get("decoding_type") not in able:
            yield "speculative_config.use_rejection_sampling", f"is not there for {draft.get('decoding_type')}"
        if draft.get("sa_config") is not None:
            yield "speculative_config.use_rejection_sampling", "excludes sa_config"


def prefill_graphs(config: Config) -> Problems:
    """Graphs of the prefill against torch.compile and LoRA."""
    kind = config.get("prefill_cuda_graph_backend")
    compiled = _section(config, "torch_compile_config")
    if kind == "breakable":
        for name in ("torch_compile_config", "lora_config"):
            if config.get(name) is not None:
                yield name, "excludes prefill_cuda_graph_backend: breakable"
    if compiled.get("enable_piecewise_cuda_graph") and kind not in (None, "piecewise"):
        yield "prefill_cuda_graph_backend", f"is {kind}, but torch_compile_config.enable_piecewise_cuda_graph is set"


def multimodal_encoder(config: Config) -> Problems:
    """The encoder's graphs exclude its side stream."""
    encoder = _section(config, "multimodal_config")
    if encoder.get("encoder_cuda_graph") is not None and (encoder.get("encoder_side_stream_max_ahead") or 0) > 0:
        yield "multimodal_config.encoder_side_stream_max_ahead", "excludes encoder_cuda_graph"


def disk_cache(config: Config) -> Problems:
    """A disk cache needs its folder."""
    cache = _section(config, "kv_cache_config")
    if (cache.get("disk_cache_size") or 0) > 0 and not cache.get("disk_cache_path"):
        yield "kv_cache_config.disk_cache_path", "is needed with disk_cache_size"


def lora_graphs(config: Config) -> Problems:
    """LoRA's own graphs against attention data parallelism."""
    if _section(config, "lora_config").get("cuda_graph_specialize_lora") and config.get("enable_attention_dp"):
        yield "lora_config.cuda_graph_specialize_lora", "cannot be used with enable_attention_dp"


def mla_skip_correction(config: Config) -> Problems:
    """A setting of one attention backend."""
    if config.get("enable_mla_skip_correction") and config.get("attn_backend", "TRTLLM") != "TRTLLM":
        yield "enable_mla_skip_correction", "needs attn_backend: TRTLLM"


def encoder_graphs(config: Config) -> Problems:
    """The encoder's graphs need its batch size."""
    if config.get("encoder_cuda_graph_config") is not None:
        if config.get("encoder_max_batch_size") is None:
            yield "encoder_max_batch_size", "is needed with encoder_cuda_graph_config"
        if config.get("encode_only"):
            yield "encoder_cuda_graph_config", "is not possible with encode_only"


def gms_loading(config: Config) -> Problems:
    """One loader against the expert load balancer."""
    if config.get("load_format") == "GMS" and _section(config, "moe_config").get("load_balancer") is not None:
        yield "load_format", "GMS excludes moe_config.load_balancer"


_BOTH = (cuda_graph_sizes, load_balancer_slots, attention_dp_balance, helix_blocks, ray_settings, eagle_needs)
RULES: Mapping[str, tuple[Callable[[Config], Problems], ...]] = {
    "1.2.1": (*_BOTH, kv_cache_dtype, tensorrt_only_methods, schedule_from_one),
    "1.3": (
        *_BOTH,
        kv_cache_dtype_packed,
        draft_needs,
        dynamic_tree,
        schedule_from_smallest,
        rejection_sampling,
        prefill_graphs,
        multimodal_encoder,
        disk_cache,
        lora_graphs,
        mla_skip_correction,
        encoder_graphs,
        gms_loading,
    ),
}
"""version in profiles/engines -> its rules"""


def _section(config: Config, name: str) -> Config:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _kv_cache_dtype(config: Config, known: tuple[str, ...]) -> Problems:
    dtype = _section(config, "kv_cache_config").get("dtype", "auto")
    if dtype not in known:
        yield "kv_cache_config.dtype", f"{dtype!r} is not loaded by the PyTorch backend; it takes {', '.join(known)}"


def _needs(draft: Config, *names: str) -> Problems:
    for name in names:
        value = draft.get(name) or (draft.get("speculative_model_dir") if name == "speculative_model" else None)
        if not value:
            yield f"speculative_config.{name}", f"is needed with decoding_type {draft.get('decoding_type')}"


def _schedule(config: Config, first: Callable[[list[int]], int]) -> Problems:
    draft = _section(config, "speculative_config")
    schedule = draft.get("draft_len_schedule")
    where = "speculative_config.draft_len_schedule"
    if not isinstance(schedule, Mapping) or not schedule:
        return
    lengths = {int(size): length for size, length in schedule.items()}
    longest = draft.get("max_draft_len")
    if min(lengths) < 1 or min(lengths.values()) < 0:
        yield where, "has a batch size below 1 or a length below 0"
    start = first(list(lengths))
    if lengths.get(start) != longest:
        yield where, f"must give batch size {start} the length max_draft_len ({longest})"
    if isinstance(longest, int) and max(lengths.values()) > longest:
        yield where, f"has a length above max_draft_len ({longest})"
