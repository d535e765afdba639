"""Every fact that a rule may name: its type, unit, meaning, what it rests on, and how to find it out.

A rule that names another fact does not load. facts.py computes them, group by group (a group is the part before the dot).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from advisor.estimator.drafting import LONGEST_DRAFT
from advisor.reasoner.support import FORMATS
from advisor.types import (
    Basis,
    Batching,
    Bound,
    Engine,
    Gpu,
    KvFormat,
    Model,
    Objective,
    SpeculationMethod,
    Support,
    WeightFormat,
)

Kind = Literal["number", "bool", "enum", "string"]
FIT_FORMATS = ("bf16", "fp8", "int4_awq", "nvfp4")
GAIN_FORMATS = ("fp8", "fp8_block", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4")


class Fact(NamedTuple):
    """One fact of the vocabulary."""

    name: str
    kind: Kind
    unit: str
    """"" where there is none: a name, a count of things named in `doc`, a ratio"""
    doc: str
    """one line"""
    basis: Basis | Literal["profile"]
    """what its value rests on; profile: what Profile.sources says of it"""
    find_out: str
    """how to learn it where it is unknown"""
    values: tuple[str, ...] = ()
    """of an enum"""
    whole: bool = False
    """a number that is always whole: the smallest step is 1"""

    @property
    def group(self) -> str:
        """The part before the first dot."""
        return self.name.partition(".")[0]


_Row = tuple[str, str, str, str]
"""name without its group, type, unit, doc; an optional " ? how to find out" ends the doc"""


def _values_of(value: type, field: str) -> tuple[str, ...]:
    """The words that a field of a value allows."""
    annotation = value.model_fields[field].annotation  # type: ignore[attr-defined]
    words: list[str] = []
    for part in (annotation, *get_args(annotation)):
        words += [word for word in get_args(part) if isinstance(word, str)]
    return tuple(dict.fromkeys(words))


_ENUMS: dict[str, tuple[str, ...]] = {
    "objective": get_args(Objective),
    "weights": get_args(WeightFormat),
    "kv": get_args(KvFormat),
    "batching": get_args(Batching),
    "bound": get_args(Bound),
    "method": get_args(SpeculationMethod),
    "support": tuple(word for word in get_args(Support) if word != "unknown"),
    "link": _values_of(Gpu, "link"),
    "attention": _values_of(Model, "attention"),
    "engine": _values_of(Engine, "name"),
}

_GPU: tuple[_Row, ...] = (
    ("id", "string", "", "name in profiles/gpus"),
    ("name", "string", "", "the driver's name of the GPU, or its profile's"),
    ("known", "bool", "", "profiles/gpus has this GPU"),
    ("architecture", "string", "", "Volta, Turing, Ampere, Ada, Hopper, Blackwell"),
    ("sm", "whole", "", "compute capability without the dot: 90 is 9.0"),
    ("count", "whole", "GPUs", "GPUs to serve on"),
    ("memory_gib", "number", "GiB", "memory of one GPU that CUDA can allocate"),
    ("free_memory_gib", "number", "GiB", "the least free memory of any of the GPUs right now ? run on the machine itself"),
    ("bandwidth_gb_s", "number", "GB/s", "memory bandwidth of one GPU, datasheet"),
    ("link", "link", "", "what connects the GPUs of one node"),
    ("link_gb_s", "number", "GB/s", "per GPU and direction between the GPUs of one node"),
    ("mig", "bool", "", "the GPU is partitioned ? run on the machine itself"),
    (
        "ridge_flops_per_byte",
        "number",
        "FLOP/byte",
        "16-bit dense peak over bandwidth; below it a kernel waits for memory",
    ),
)
_MODEL: tuple[_Row, ...] = (
    ("known", "bool", "", "the architecture is one that this program models"),
    ("params_b", "number", "1e9", "all parameters"),
    ("active_params_b", "number", "1e9", "parameters that one token uses"),
    ("layers", "whole", "layers", "transformer layers"),
    ("head_dim", "whole", "elements", "width of one attention head"),
    ("attention", "attention", "", "how heads share keys and values"),
    ("is_moe", "bool", "", "mixture of experts"),
    ("experts", "whole", "experts", "routed experts of one layer; 0 for a dense model"),
    ("is_mla", "bool", "", "multi-head latent attention"),
    ("is_hybrid", "bool", "", "some layers are recurrent (Mamba, gated delta net) and keep no KV cache"),
    ("has_window", "bool", "", "some layers attend to a sliding window only"),
    ("max_context", "whole", "tokens", "longest sequence that the model was made for"),
    ("tied_embeddings", "bool", "", "input and output embedding are one matrix"),
    ("weight_bits", "whole", "bits", "width of the checkpoint's matrices as they are: 32, 16, 8 or 4"),
    ("is_quantized", "bool", "", "the checkpoint is already quantized"),
    ("quantized_weights", "weights", "", "the checkpoint's weight format; bf16 where it is not quantized"),
    ("quantized_kv_cache", "kv", "", "the KV cache format that the checkpoint asks for; bf16 where it asks for none"),
    ("bf16_gib", "number", "GiB", "all parameters at 16 bits"),
    (
        "kv_bytes_per_token",
        "number",
        "bytes",
        "KV cache of one token at 16 bits, all layers, window not yet full",
    ),
    ("has_mtp", "bool", "", "the checkpoint brings multi-token-prediction layers"),
    ("has_eagle3", "bool", "", "an EAGLE-3 draft for this model is published"),
    ("has_draft_model", "bool", "", "a draft model, or a smaller model of the same family, is known"),
    ("group_size", "whole", "", "largest of 128, 64, 32 that divides the inner size of every quantized matrix; 0: none does"),
)
_TRAFFIC: tuple[_Row, ...] = (
    ("isl_mean", "number", "tokens", "input length, mean"),
    ("isl_p99", "number", "tokens", "input length, 99th percentile"),
    ("isl_max", "number", "tokens", "input length, longest"),
    ("osl_mean", "number", "tokens", "output length, mean"),
    ("osl_p99", "number", "tokens", "output length, 99th percentile"),
    ("context_mean", "number", "tokens", "mean length of a sequence while it decodes: input + half the output"),
    (
        "concurrency",
        "number",
        "requests",
        "requests in the system at once, over all replicas; not declared: from the rate by Little's law on the baseline, and"
        " without a rate as many as the baseline's memory holds ? give --concurrency, or --rate, or a trace",
    ),
    ("rate", "number", "1/s", "arrivals per second ? give --rate, or a trace with arrival times"),
    ("burstiness", "number", "", "coefficient of variation of the times between arrivals, 1 is Poisson ? give a trace"),
    ("length_dispersion", "number", "", "coefficient of variation of the output length ? give a trace with output lengths"),
    (
        "shared_prefix",
        "number",
        "",
        "share of input tokens that repeat a prefix, 0 to 1 ? give a trace with prefix hashes",
    ),
    (
        "static_idle_share",
        "number",
        "",
        "share of slot-time that static batches of this concurrency idle ? give a trace",
    ),
    ("prefill_token_share", "number", "", "input tokens over all tokens"),
)
_GOAL: tuple[_Row, ...] = (
    ("objective", "objective", "", "what is wanted"),
    ("ttft_ms", "number", "ms", "limit on the mean time to first token ? give --ttft-ms"),
    ("itl_ms", "number", "ms", "limit on the mean inter-token latency ? give --itl-ms"),
    ("accuracy_budget_pct", "number", "%", "largest acceptable loss on the accuracy metric ? give --accuracy-budget"),
    ("accuracy_metric", "string", "", "perplexity, kl, top1, task:NAME or command"),
)
_ENGINE: tuple[_Row, ...] = (
    ("name", "engine", "", "the serving engine"),
    ("version", "string", "", "its version"),
    ("batching", "batching", "", "how it batches today ? give its configuration or metrics"),
)
_BASELINE: tuple[_Row, ...] = (
    ("fits", "bool", "", "weights and at least one request fit"),
    ("weight_share", "number", "", "weights over the memory's capacity, per GPU; above 1 they do not fit"),
    ("kv_share", "number", "", "KV cache that the whole load needs over the memory's capacity, per GPU; may exceed 1"),
    ("max_concurrency", "whole", "requests", "requests of the mean length whose cache fits at once, over all replicas"),
    ("concurrency_share", "number", "", "traffic.concurrency over baseline.max_concurrency; above 1 requests wait for memory"),
    ("ttft_ms", "number", "ms", "mean time to first token"),
    ("itl_ms", "number", "ms", "mean inter-token latency"),
    ("output_tokens_per_s", "number", "tokens/s", "output of the whole deployment"),
    ("decode_bound", "bound", "", "what limits a decode step"),
    ("prefill_bound", "bound", "", "what limits the prefill"),
    ("batch", "number", "requests", "requests really in flight at once, per replica"),
    ("tensor_parallel", "whole", "GPUs", "GPUs that one replica's layers are cut over"),
    ("one_gpu_weight_share", "number", "", "the baseline's weights uncut, over the capacity of one GPU"),
    (
        "cache_to_weights",
        "number",
        "",
        "bytes of the KV cache of all requests in the system at their mean context over bytes of the weights, both as the"
        " baseline stores them; a decode step reads both. An open load counts gpu.ridge_flops_per_byte requests a replica",
    ),
)
_SPECULATION: tuple[_Row, ...] = (
    (
        "best_method",
        "method",
        "",
        "the fastest method that the model has a draft for and the engine does not exclude; n-grams once measured",
    ),
    ("best_draft_len", "whole", "tokens", "draft length at which it is fastest at speculation.batch"),
    ("gain", "number", "", "expected speed-up of the decode at speculation.batch with the best method; 1 is none"),
    (
        "batch",
        "number",
        "requests",
        "requests in flight at once, per replica, at which speculation is judged: baseline.batch; where the baseline does"
        " not fit, that with the narrowest native weights, then with 4-bit ones",
    ),
    ("break_even_concurrency", "number", "requests", "requests in flight, per replica, above which it no longer gains"),
)
_MEASURED: tuple[_Row, ...] = (
    ("accuracy_loss_pct", "number", "%", "loss on the goal's metric against the unquantized model"),
    ("accuracy_inconclusive", "bool", "", "the evaluation's confidence interval straddles the accuracy budget"),
    ("scheme", "weights", "", "the weight format that was measured"),
    ("calibration_prompts", "whole", "prompts", "prompts used to calibrate"),
    (
        "calibration_distance",
        "number",
        "",
        "distance of calibration and production tokens, 0 same to 1 disjoint",
    ),
    ("recalibrated", "bool", "", "calibration on production traffic was already tried, or is ruled out"),
    (
        "mixed_precision_tried",
        "bool",
        "",
        "keeping the sensitive layers at higher precision was already tried, or is ruled out",
    ),
    ("sensitive_layer_share", "number", "", "share of the total sensitivity that the most sensitive tenth of the layers holds"),
    ("qat_tried", "bool", "", "quantization-aware training was already tried, or is ruled out"),
    ("ttft_ms", "number", "ms", "mean time to first token"),
    ("itl_ms", "number", "ms", "mean inter-token latency"),
    ("output_tokens_per_s", "number", "tokens/s", "output of the whole deployment"),
    (
        "acceptance",
        "number",
        "",
        "probability that a drafted token is accepted, 0 to 1: the 95 % interval's low end ? advise draft measures it",
    ),
    (
        "ngram_acceptance",
        "number",
        "",
        "probability that an n-gram guess is accepted in the model's own answers: the 95 % interval's low end "
        "? advise draft measures it",
    ),
    ("draft_model", "string", "", "the draft model that measured.acceptance is of: its folder ? advise draft --draft FOLDER"),
    (
        "draft_params_b",
        "number",
        "1e9",
        "parameters of measured.draft_model that one token reads ? advise draft --draft FOLDER",
    ),
    *(
        (
            f"{kind}tokens_per_step_{length}",
            "number",
            "tokens",
            f"tokens that a verification step gives with {'n-gram guesses' if kind else 'drafts'} of {length}: "
            "the 95 % interval's low end ? advise draft",
        )
        for kind in ("", "ngram_")
        for length in range(1, LONGEST_DRAFT + 1)
    ),
    (
        "calibration_sensitive",
        "bool",
        "",
        "the measured scheme's statistics depend on the calibration text (SmoothQuant, GPTQ, NVFP4; hardly FP8, AWQ)",
    ),
    ("recalibration_left", "bool", "", "the scheme is calibration_sensitive and not yet recalibrated"),
    ("limit_ratio", "number", "", "worst of the measured TTFT and ITL over their limits; above 1 a limit is missed"),
    ("teacher_loss_pct", "number", "%", "loss of the unquantized model itself against its target"),
    ("idle_share", "number", "", "share of slot-time that the batch idled"),
    ("export_loads", "bool", "", "the engine loaded the exported checkpoint"),
)

_ESTIMATED = "complete what the estimate's notes name (GPU memory and bandwidth, model sizes, lengths)"
_FIND_OUT = {
    "gpu": "give --gpu with a name of profiles/gpus, or run on the machine itself",
    "model": "give a folder with config.json and safetensors, or the hub id",
    "traffic": "give a trace or flags (--isl --osl --concurrency)",
    "goal": "give it as a flag",
    "engine": "give --engine and --engine-version",
    "support": "try it on this GPU and add the cell to profiles/support",
    "baseline": _ESTIMATED,
    "fit": _ESTIMATED,
    "gain": "there is none where either of the two does not fit; else " + _ESTIMATED,
    "speculation": "there is none without a draft; advise draft measures n-grams and drafts on your prompts, for --measured",
    "measured": "advise apply measures it; or give --measured FILE.json",
}
_BASES: dict[str, Basis | Literal["profile"]] = {
    "gpu": "profile",
    "model": "profile",
    "traffic": "profile",
    "goal": "profile",
    "engine": "profile",
    "support": "published",
    "measured": "measured",
}
_ARITHMETIC = frozenset(
    (
        "gpu.ridge_flops_per_byte",
        "model.bf16_gib",
        "model.kv_bytes_per_token",
        "model.group_size",
        "traffic.context_mean",
        "traffic.static_idle_share",
        "traffic.prefill_token_share",
    )
)


def _rows() -> Iterator[tuple[str, _Row]]:
    tables = {
        "gpu": _GPU,
        "model": _MODEL,
        "traffic": _TRAFFIC,
        "goal": _GOAL,
        "engine": _ENGINE,
        "baseline": _BASELINE,
        "speculation": _SPECULATION,
        "measured": _MEASURED,
    }
    for group, rows in tables.items():
        yield from ((group, row) for row in rows)
    for kind, formats in FORMATS.items():
        for word in formats:
            yield "support", (f"{kind}.{word}", "support", "", f"this engine version and GPU with {kind} {word}")
    yield "support", ("checkpoint", "support", "", "this engine version and GPU with the checkpoint's own weight format")
    yield "support", ("quantized_formats", "whole", "formats", "quantized weight formats that run natively here")
    for word in FIT_FORMATS:
        label = f"with {word} weights and a 16-bit KV cache"
        yield "fit", (f"{word}.fits", "bool", "", f"the baseline {label}: weights and one request fit")
        yield "fit", (f"{word}.max_concurrency", "whole", "requests", f"the baseline {label}: requests whose cache fits")
        yield "fit", (f"{word}.concurrency_share", "number", "", f"the baseline {label}: traffic.concurrency over that")
    label = "with an FP8 KV cache"
    yield "fit", ("kv_fp8.max_concurrency", "whole", "requests", f"the baseline {label}: requests whose cache fits")
    yield "fit", ("kv_fp8.concurrency_share", "number", "", f"the baseline {label}: traffic.concurrency over that")
    label = "the narrowest weights that compute natively here (no weight-only format), on all GPUs"
    yield "fit", ("native.weights", "weights", "", f"which format that is: {label}")
    yield "fit", ("native.weight_share", "number", "", f"{label}: bytes over capacity; above 1 they do not fit")
    text = (
        f"{label}: requests whose 16-bit cache fits over those in the system; of an open load as in baseline.cache_to_weights"
    )
    yield "fit", ("native.coverage", "number", "", text)
    for word in GAIN_FORMATS:
        yield "gain", (word, "number", "", f"output tokens/s of the baseline with {word} weights over the baseline's")
    yield "gain", ("fp8_kv", "number", "", "output tokens/s of the baseline with an FP8 KV cache over the baseline's")
    yield "gain", ("int4_over_fp8", "number", "", "output tokens/s of the baseline with int4_awq weights over that with fp8")


def _fact(group: str, row: _Row) -> Fact:
    name, kind, unit, text = row
    doc, _, find_out = text.partition(" ? ")
    full = f"{group}.{name}"
    basis = "arithmetic" if full in _ARITHMETIC else _BASES.get(group, "arithmetic")
    values = _ENUMS.get(kind, ())
    plain: Kind = "enum" if values else "number" if kind == "whole" else kind  # type: ignore[assignment]
    return Fact(full, plain, unit, doc, basis, find_out or _FIND_OUT[group], values, kind == "whole")


def misfit(fact: Fact, value: object) -> str:
    """Why a value is none of this fact's, or "". None (not known) always fits."""
    if value is None:
        return ""
    if fact.kind == "bool":
        return "" if isinstance(value, bool) else f"{fact.name} is true or false, not {value!r}"
    if fact.kind == "number":
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if good else f"{fact.name} is a number, not {value!r}"
    if not isinstance(value, str):
        return f"{fact.name} is text, not {value!r}"
    if fact.values and value not in fact.values:
        return f"{fact.name} is never {value!r}: one of {', '.join(fact.values)}"
    return ""


FACTS: dict[str, Fact] = {fact.name: fact for fact in (_fact(group, row) for group, row in _rows())}
GROUPS = tuple(dict.fromkeys(fact.group for fact in FACTS.values()))
