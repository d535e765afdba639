"""The values that flow between the stages: read this first.

    Profile --reasoner--> Findings, Plan --executor--> Changes --report--> pages      all of it: Report

Every value is frozen, serialisable and refuses keys it does not know. A docstring under a field gives its meaning
and unit; `advise schema` prints them. GiB are 2**30 bytes, GB/s and TFLOPS are decimal, ms are milliseconds.
None always means "not known", never zero.

Annotations are not deferred here: pydantic would compile each of the 500 again, 20 ms of every start.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

_set = object.__setattr__

Scalar = bool | int | float | str | None
Basis = Literal["arithmetic", "published", "silicon", "measured"]
Verdict = Literal["fires", "silent", "blocked", "unknown"]
Support = Literal["native", "fallback", "impossible", "unknown"]
Objective = Literal["throughput", "latency", "cost"]
WeightFormat = Literal[
    "bf16", "fp8", "fp8_rowwise", "fp8_block", "int8_sq", "int8_wo", "int4_awq", "int4_gptq", "w4a8_awq", "nvfp4", "mxfp4"
]
KvFormat = Literal["bf16", "fp8", "int8", "nvfp4"]
Batching = Literal["in-flight", "static"]
SpeculationMethod = Literal["ngram", "draft", "eagle3", "mtp"]
Bound = Literal["compute", "memory", "network", "overhead"]


class Value(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", defer_build=True, populate_by_name=True, serialize_by_alias=True, protected_namespaces=()
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, in a fifth of its time: a search copies thousands, and no Value has extras or private attributes."""
        if deep:
            return super().model_copy(update=update, deep=True)
        changes = update or {}
        copied = self.__new__(type(self))
        _set(copied, "__dict__", {**self.__dict__, **changes})
        _set(copied, "__pydantic_fields_set__", self.__pydantic_fields_set__ | changes.keys())
        _set(copied, "__pydantic_extra__", None)
        _set(copied, "__pydantic_private__", None)
        return copied


# ---------------------------------------------------------------- Profile: what is there, made by profiler/


class TensorRates(Value):
    """Dense tensor-core peaks of one GPU in TFLOPS (TOPS for int8 and int4); None: no such unit, or not known."""

    fp16: float | None = None
    bf16: float | None = None
    fp8: float | None = None
    int8: float | None = None
    int4: float | None = None
    fp4: float | None = None


class GpuProcess(Value):
    """A process that holds memory on a GPU."""

    pid: int
    used_memory_gib: float | None = None
    device: int = 0
    """index of the GPU on this machine"""


class Gpu(Value):
    """The GPUs to serve on: `count` equal ones. Live readings are None when planning for a machine elsewhere."""

    id: str | None
    """name in profiles/gpus, None when the GPU is not known there"""
    name: str
    """NVML's own name, or the profile's"""
    architecture: str | None = None
    """Volta, Turing, Ampere, Ada, Hopper, Blackwell"""
    sm: int | None = None
    """compute capability without the dot: 90 is 9.0"""
    count: int = 1
    gpus_per_node: int = 8
    memory_gib: float | None = None
    """memory of one GPU that CUDA can allocate, GiB"""
    free_memory_gib: float | None = None
    """the least free memory of any of the GPUs right now, GiB"""
    bandwidth_gb_s: float | None = None
    """device memory bandwidth of one GPU, GB/s, datasheet"""
    tflops: TensorRates = TensorRates()
    link: Literal["nvlink", "pcie", "c2c"] | None = None
    """what connects the GPUs of one node"""
    link_gb_s: float | None = None
    """per GPU and direction, GB/s"""
    tdp_w: float | None = None
    power_limit_w: float | None = None
    driver: str | None = None
    cuda: str | None = None
    """highest CUDA version of the driver"""
    mig: bool | None = None
    ecc: bool | None = None
    processes: tuple[GpuProcess, ...] = ()
    notes: tuple[str, ...] = ()
    """discrepancies between sources and what could not be read, one sentence each"""


class Mla(Value):
    """Multi-head latent attention: the cache holds kv_lora_rank + qk_rope_head_dim elements per token and layer."""

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


class Moe(Value):
    """Mixture of experts."""

    experts: int
    active: int
    """routed experts per token"""
    intermediate: int
    """width of one routed expert"""
    layers: int
    """layers that have experts; the model's other MLP layers are dense"""
    shared_intermediate: int = 0
    """total width of the shared experts of one layer, 0 without"""
    hidden: int | None = None
    """width a routed expert reads and writes where it is not Model.hidden (experts in a latent space)"""


class Window(Value):
    """Sliding-window (local) attention layers."""

    size: int
    """tokens that a local layer keeps"""
    layers: int
    """how many of Model.attention_layers are local"""
    kv_elements: float | None = None
    """cache elements per token of one local layer where it is not 2 * kv_heads * head_dim; None: it is"""
    chunked: bool = False
    """whether a token attends to those of its own chunk of `size` tokens before it (Llama 4), not to the last `size`"""


class Recurrent(Value):
    """Layers with a state of fixed size instead of a KV cache (Mamba, gated delta net)."""

    kind: str
    layers: int
    state_elements: int
    """recurrent state per layer and sequence, elements"""
    conv_elements: int = 0
    """convolution state per layer and sequence, elements"""
    params_per_layer: int = 0
    state_dtype: str = "float32"
    """of the recurrent state; the convolution state has the model's dtype"""


class Quantized(Value):
    """How a checkpoint is already quantized."""

    weights: WeightFormat | None
    """None: a format this program does not know; `method` has its name"""
    method: str
    """the checkpoint's own word: modelopt, fp8, awq, gptq, compressed-tensors, mxfp4, bitsandbytes ..."""
    kv_cache: KvFormat | None = None
    group_size: int | None = None
    excluded: tuple[str, ...] = ()
    """module patterns left unquantized"""


class Draft(Value):
    """A published draft for speculative decoding of a model."""

    method: SpeculationMethod
    id: str | None = None
    """hub id of the draft's weights; None when the model brings it (mtp) or none is needed (ngram)"""
    draft_len: int | None = None
    acceptance_length: float | None = None
    """published tokens per verification step"""
    lengths: dict[int, float] = {}
    """measured tokens per verification step: draft length -> tokens"""
    params: int | None = None
    """parameters that one drafted token reads; None: by the name, or by the method"""
    source: str = ""


class Model(Value):
    """A language model's architecture, as far as serving cost depends on it."""

    name: str
    architecture: str
    """the first of config.json's architectures; "unknown" when it has none"""
    known: bool = True
    """False: an architecture nobody here has heard of; the sizes below may miss some of it"""
    layers: int
    hidden: int
    intermediate: int
    """width of a dense MLP layer"""
    gated_mlp: bool = True
    """three matrices (gate, up, down) instead of two"""
    vocab: int
    tied_embeddings: bool = False
    max_context: int | None = None
    heads: int
    kv_heads: int
    head_dim: int
    attention: Literal["mha", "gqa", "mqa", "mla"]
    attention_layers: int
    """layers with a KV cache (Window.layers of them are local)"""
    mlp_layers: int
    """layers with an MLP, dense or MoE (Moe.layers of them have experts)"""
    mla: Mla | None = None
    moe: Moe | None = None
    window: Window | None = None
    recurrent: Recurrent | None = None
    kv_elements: float | None = None
    """cache elements per token of one global attention layer, mean over them, where it is not 2 * kv_heads * head_dim
    (with mla: kv_lora_rank + qk_rope_head_dim): keys and values of different width, compressed caches; None: it is"""
    indexer_bytes: float = 0.0
    """bytes per token and attention layer of a sparse-attention indexer's keys, the same for every KV format"""
    mtp_layers: int = 0
    """multi-token-prediction layers that the checkpoint brings"""
    params: int | None = None
    """all parameters"""
    active_params: int | None = None
    """parameters that one token uses"""
    params_by_part: dict[str, int] = {}
    """embedding, lm_head, attention, recurrent, mlp, experts, shared_experts, router, norms, other: their sum is params;
    beside it, not in params: mtp, and vision (every other modality)"""
    dtype: str = "bfloat16"
    """of the unquantized tensors"""
    quantized: Quantized | None = None
    weight_bytes: int | None = None
    """exact size of the tensors in the checkpoint; None when only the architecture is known"""
    bytes_by_dtype: dict[str, int] = {}
    """safetensors dtype -> bytes"""
    folder: str | None = None
    """the local folder, when there is one"""
    drafts: tuple[Draft, ...] = ()
    siblings: tuple[str, ...] = ()
    """smaller models of the same family in profiles/models, largest first"""
    checkpoints: dict[str, str] = {}
    """published checkpoints of this model that are already quantized: weight format -> hub id"""
    notes: tuple[str, ...] = ()
    """what is not known or not modelled, one sentence each"""


class Lengths(Value):
    """A distribution of token counts."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Traffic(Value):
    """The requests to serve."""

    name: str
    isl: Lengths
    """input length, tokens"""
    osl: Lengths
    """output length, tokens"""
    concurrency: float | None = None
    """requests in the system at once, mean; None: as many as memory holds"""
    rate: float | None = None
    """arrivals per second"""
    burstiness: float | None = None
    """coefficient of variation of the times between arrivals; 1 is Poisson"""
    length_dispersion: float | None = None
    """coefficient of variation of the output length"""
    shared_prefix: float | None = None
    """share of input tokens that repeat a prefix seen before, 0 to 1"""
    requests: int | None = None
    """how many requests a trace held"""
    lengths: tuple[tuple[int, int], ...] = ()
    """a sample of (input, output) pairs, at most 512, for percentiles and simulation"""
    notes: tuple[str, ...] = ()


class Goal(Value):
    """What is wanted, and the limits."""

    objective: Objective = "throughput"
    ttft_ms: float | None = None
    """limit on the mean time to first token"""
    itl_ms: float | None = None
    """limit on the mean inter-token latency"""
    accuracy_budget_pct: float | None = None
    """largest acceptable loss on accuracy_metric, percent"""
    accuracy_metric: str = "perplexity"
    """perplexity, kl, top1, task:NAME or command"""


class Engine(Value):
    """The serving engine to plan for, and how it is configured today where that is known."""

    name: Literal["tensorrt-llm", "vllm", "sglang"] = "tensorrt-llm"
    version: str = "1.2.1"
    batching: Batching | None = None
    """how the engine batches today; None: not known"""


class Correction(Value):
    """What earlier measurements on the same GPU, model and engine say of one figure of an estimate."""

    factor: float
    """measured over estimated, shrunk towards 1 by how few measurements there are"""
    count: int
    low: float
    high: float
    """least and largest of the single ratios"""


class Profile(Value):
    """Everything the rules may ask about: the machine, the model, the traffic, the goal, and what was measured."""

    gpu: Gpu
    model: Model
    traffic: Traffic
    goal: Goal = Goal()
    engine: Engine = Engine()
    measured: dict[str, Scalar] = {}
    """measured facts, by the names of `advise facts` without the prefix "measured." """
    corrections: dict[str, Correction] = {}
    """figure of an Estimate (ttft_ms, itl_ms, output_tokens_per_s ...) -> its correction by the evidence of earlier runs"""
    sources: dict[str, str] = {}
    """fact ("gpu.bandwidth_gb_s") -> where it came from: nvml, config.json, safetensors, flag, default, trace, profiles/..."""


# ---------------------------------------------------------------- Deployment and Estimate: estimator/


class Speculation(Value):
    """Speculative decoding: a draft proposes, the target verifies."""

    method: SpeculationMethod
    draft_len: int = 3
    """tokens proposed per step"""
    acceptance: float | None = None
    """probability that one proposed token is accepted, 0 to 1"""
    draft_model: str | None = None
    draft_params: int | None = None
    """parameters of the draft model that one token reads; None: as its name says"""
    max_concurrency: int | None = None
    """switched off above this many requests, over all replicas"""


class Deployment(Value):
    """One way to serve."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: int = 1
    attention_dp: bool = False
    weights: WeightFormat = "bf16"
    kv_cache: KvFormat = "bf16"
    batching: Batching = "in-flight"
    speculation: Speculation | None = None
    replicas: int = 1
    max_batch_size: int | None = None
    """requests per step and replica; None: the engine's default"""
    max_num_tokens: int | None = None
    """tokens per step; None: the engine's default"""
    chunked_prefill: bool = False
    prefix_reuse: bool = False
    cuda_graphs: bool = True
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    batch_wait_steps: int = Field(default=0, ge=0)
    """steps that a prompt waits for others to share its own with (TensorRT-LLM's batch_wait_timeout_iters)"""
    batch_wait_fill: float = Field(default=0.0, ge=0.0, le=1.0)
    """share of max_num_tokens at which the wait ends sooner (batch_wait_max_tokens_ratio)"""
    poll_steps: int = Field(default=1, ge=1)
    """steps between two looks at the requests that came (SGLang's scheduler_recv_interval)"""
    keep_high_precision: tuple[str, ...] = ()
    """module patterns kept at 16 bits, or at 8 where the rule says so"""


class Point(Deployment):
    """Input of `advise predict`: a deployment of a model on a GPU under a load."""

    model: str
    gpu: str
    isl: int
    osl: int
    concurrency: int | Literal["max"] = 1
    """"max": as many as memory holds (offline throughput)"""
    rate: float | None = None
    """arrivals per second instead of a concurrency"""
    requests: int | None = None
    """requests of a finite run; None: steady state, but with "max" as many as TensorRT-LLM's published tables ran"""
    engine: Literal["tensorrt-llm", "vllm", "sglang"] = "tensorrt-llm"
    engine_version: str | None = None


class Load(Value):
    """What the estimator needs of the traffic."""

    isl: float
    osl: float
    concurrency: float | None = None
    """over all replicas; None: as many as memory holds"""
    rate: float | None = None
    requests: int | None = None
    shared_prefix: float = 0.0
    lengths: tuple[tuple[int, int], ...] = ()


class Memory(Value):
    """GiB per GPU."""

    weights: float
    kv_cache: float
    """what the load needs of the cache (at most what is there)"""
    activations: float
    runtime: float
    total: float
    capacity: float


class BoundBy(Value):
    """What limits each phase."""

    prefill: Bound
    decode: Bound


class Loss(Value):
    """Expected loss of accuracy from the numeric formats, percent, as a range."""

    metric: str
    low_pct: float
    high_pct: float
    basis: Basis
    source: str


class Estimate(Value):
    """What a deployment would give. None: cannot be estimated, or does not fit; `notes` says which."""

    memory_gib: Memory
    fits: bool
    """weights and at least one request fit"""
    max_concurrency: int | None
    """requests of this length whose cache fits at once, over all replicas"""
    ttft_ms: float | None = None
    itl_ms: float | None = None
    output_tokens_per_s: float | None = None
    """of the whole deployment"""
    output_tokens_per_s_per_gpu: float | None = None
    request_latency_ms: float | None = None
    concurrency: float | None = None
    """requests that are really in flight at once"""
    bound_by: BoundBy | None = None
    basis: dict[str, Basis] = {}
    """number -> what it rests on"""
    range: dict[str, tuple[float, float]] = {}
    """number -> 80 % interval"""
    loss: Loss | None = None
    notes: tuple[str, ...] = ()


class TrainingCost(Value):
    """What training would cost, as ranges from published runs."""

    method: Literal["qat", "qad", "distillation", "draft_head"]
    gpu_hours: tuple[float, float]
    """on this GPU, low and high"""
    tokens: tuple[float, float]
    """that are trained on"""
    flops_per_token: float
    utilisation: tuple[float, float]
    """model FLOPs over the dense 16-bit peak: the least and the largest published"""
    least_gpus: int | None
    """GPUs whose memory holds weights, gradients, optimizer state and a teacher; None: memory not known"""
    basis: Basis = "published"
    source: str = ""


class Percentiles(Value):
    """A distribution of times in ms."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Simulated(Value):
    """What a discrete-event simulation of one deployment under single requests gave, over all replicas."""

    requests: int
    """that were served"""
    refused: int
    """that the engine cannot take: longer than a step without chunked prefill, or than the whole KV cache"""
    seconds: float
    """from the first arrival to the last token"""
    ttft_ms: Percentiles
    """arrival to first token, over requests"""
    itl_ms: Percentiles
    """time between two tokens of one sequence, over all tokens"""
    latency_ms: Percentiles
    """arrival to last token, over requests"""
    queue_ms: Percentiles
    """arrival to the start of the prefill, over requests"""
    output_tokens_per_s: float
    requests_per_s: float
    concurrency: float
    """requests in the system at once, mean over time"""
    batch: float
    """sequences in a step, mean over the time in which steps ran, per replica"""
    busy_share: float
    """share of the time in which a step ran"""
    idle_share: float
    """share of slot-time that slots of a batch waited for its longest member; 0 in flight"""
    queue_peak: int
    """most requests that waited at once, per replica"""
    kv_share: float
    """share of the KV cache that was in use, mean over time"""
    kv_peak: float
    """the most of it that was in use at once"""
    preemptions: int
    """sequences that lost their cache and were prefilled again (max_utilization)"""
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- Rule, Finding, Plan: reasoner/


class Reference(Value):
    """Where a rule's claim stands."""

    source: str
    says: str
    """the sentence it supports, in our words, with its figures"""
    date: str = ""


class Prediction(Value):
    """What a remedy is expected to do to one metric."""

    metric: Literal[
        "weight_memory", "kv_memory", "max_concurrency", "ttft", "itl", "throughput", "accuracy_loss", "cost", "step_time"
    ]
    range: tuple[float, float]
    """factor against before (0.5: halves), or percent for accuracy_loss"""
    basis: Basis
    when: str = ""


class Application(Value):
    """What a remedy changes: fields of the Deployment, and what the executor does."""

    deployment: dict[str, object] = {}
    """field -> value"""
    action: str
    """serve, quantize, recalibrate, mixed_precision, qat, distill, draft, none"""
    parameters: dict[str, object] = {}


class RuleCase(Value):
    """A rule's own test: given these facts, this verdict."""

    name: str
    facts: dict[str, Scalar]
    verdict: Verdict


class Rule(Value):
    """A problem and one remedy: a file of rules/."""

    id: str
    """problem-folder/remedy-file"""
    status: Literal["stable", "preview", "retired"]
    seed_row: int | None = None
    """row of the mission's table, 1 to 9"""
    problem: str
    why: str
    """the mechanism"""
    remedy: str
    safety: Literal["lossless", "lossy", "manual"]
    when: tuple[str, ...]
    requires: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    predicts: tuple[Prediction, ...] = ()
    applies: Application
    references: tuple[Reference, ...]
    tests: tuple[RuleCase, ...]


class Override(Value):
    """What an organisation's overlay changed."""

    rule: str
    change: Literal["added", "tightened", "suppressed"]
    reason: str
    until: str = ""
    """expiry date, ISO"""
    expired: bool = False
    """True: the date is past, so this was not applied"""
    source: str
    """the overlay file"""


class Evidence(Value):
    """One comparison of a rule, with both sides' values."""

    condition: str
    left: Scalar
    right: Scalar
    holds: bool | None
    """None: a side is not known"""
    find_out: str = ""
    """how to learn the unknown side"""


class Finding(Value):
    """A rule's verdict on a profile."""

    rule: str
    seed_row: int | None = None
    verdict: Verdict
    safety: Literal["lossless", "lossy", "manual"]
    evidence: tuple[Evidence, ...]
    problem: str
    why: str
    remedy: str
    references: tuple[Reference, ...]


class Step(Value):
    """One change of the plan, in order."""

    rule: str
    changes: dict[str, object]
    """Deployment field -> new value"""
    before: Estimate
    after: Estimate
    alone: Estimate
    """the baseline with only this change"""
    undo: str = ""


class Rejection(Value):
    """A remedy that is not in the plan, and why, in numbers."""

    rule: str
    reason: str
    estimate: Estimate | None = None
    """the plan with this remedy in place of the chosen one"""


class Alternative(Value):
    """Another deployment on the Pareto front."""

    deployment: Deployment
    estimate: Estimate
    best_for: str


class Fallback(Value):
    """What is tried next if a measurement disappoints."""

    if_: str = Field(alias="if")
    rule: str
    cost: TrainingCost | None = None
    """of a remedy that trains; None: it trains nothing, or this GPU's peak is not known"""


class Flip(Value):
    """The value of a fact at which another plan wins."""

    fact: str
    now: float | None
    """None: not set"""
    at: float
    then: str


class Student(Value):
    """A smaller model that would keep the limits which the teacher breaks, and how to get it."""

    name: str
    """hub id of a smaller sibling, or what is cut from the teacher"""
    how: Literal["sibling", "depth", "width"]
    layers: int
    hidden: int
    intermediate: int
    params: int
    share: float
    """of the teacher's parameters"""
    rounds: int
    """of cutting and distilling; a sibling is not cut"""
    plain: Estimate
    """served as the plan says, but at 16 bits"""
    expected: Estimate
    """served as the plan says"""
    cost: TrainingCost | None = None
    """of the distillation; None: the GPU's 16-bit peak is not known"""
    loss: Loss | None = None
    """expected after the distillation, in percent of the teacher's score; None: nothing published is near"""
    here: bool = False
    """`advise apply` can make it: dense layers that can be dropped one by one"""


class Distillation(Value):
    """What student would keep the limits that no deployment of the teacher keeps."""

    rule: str
    broken: tuple[str, ...]
    """the limits that the teacher breaks, each with its figure and the limit"""
    students: tuple[Student, ...]
    """the largest of each kind; none: even the smallest would break them"""
    verdict: str
    """one sentence"""
    teacher: Estimate | None = None
    """at 16 bits, where the plan is a student's own; None: the plan is the teacher's"""
    notes: tuple[str, ...] = ()


class Plan(Value):
    """What to do, in order, and what was left out."""

    goal: Goal
    feasible: bool
    """False: no deployment satisfies the limits; this is the nearest one, and `shortfall` says what gives"""
    verdict: str
    """one sentence"""
    baseline_deployment: Deployment
    baseline: Estimate
    deployment: Deployment
    expected: Estimate
    steps: tuple[Step, ...]
    rejected: tuple[Rejection, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()
    flips: tuple[Flip, ...] = ()
    shortfall: tuple[str, ...] = ()
    enough_gpus: int | None = None
    """of the same GPUs, with which a plan would keep every limit; None: not looked for, or no number that was tried would"""
    distillation: Distillation | None = None
    """a student that would keep the limits; None: they are kept, or the rule for it is not to be used"""
    warnings: tuple[str, ...] = ()
    tried: int = 0
    """deployments estimated"""


# ---------------------------------------------------------------- Change, Report


class Interval(Value):
    """A measured figure with its confidence interval."""

    metric: str
    """perplexity, kl, top1, task:NAME, ttft_ms, itl_ms, output_tokens_per_s ..."""
    what: str
    """what was measured: "original", or the scheme"""
    value: float
    low: float | None = None
    high: float | None = None
    """95 % confidence interval"""
    samples: int | None = None
    limit: float | None = None
    """the gate's limit in the same unit"""
    predicted: float | None = None
    """what the estimate said, in the same unit; None: it said nothing of this, or of another machine"""
    predicted_range: tuple[float, float] | None = None
    """the estimate's 80 % interval"""
    verdict: Literal["passed", "failed", "inconclusive"] | None = None
    """against the limit; None: there is none"""


class LayerSensitivity(Value):
    """How much one layer alone loses in a format."""

    layer: str
    format: str
    score: float
    """in the unit of Change.detail's metric; larger is more sensitive"""
    kept: bool = False
    """kept at higher precision"""


class DraftLength(Value):
    """Drafts of one length: replayed over the target's own answers, and estimated where they will be served."""

    draft_len: int
    tokens_per_step: float
    """that a verification step gave, measured; between 1 and draft_len + 1"""
    low: float
    high: float
    """95 % bootstrap interval over the answers"""
    formula: float
    """tokens per step if each drafted token were accepted as often as a single one: (1 - a^(k+1)) / (1 - a)"""
    accepted: float | None = None
    """probability that the last drafted token is accepted when those before it were; None: never reached"""
    gain: float | None = None
    """estimated decode speed-up at the planned batch with the measured tokens per step; None: there is no estimate"""
    gain_range: tuple[float, float] | None = None
    """the same at the ends of the interval"""
    break_even_concurrency: int | None = None
    """requests in flight, over all replicas, above which it no longer gains; 0: it gains at none"""


class Calibration(Value):
    """What a model was calibrated on, and how like production's that is."""

    source: str
    """where the prompts are from"""
    prompts: int
    """that were really used"""
    tokens: int
    duplicates: int = 0
    """prompts dropped as doubles or near-doubles, of all that were read"""
    short: int = 0
    """prompts dropped for being too short to tell anything"""
    production: str
    """what it is compared with"""
    distance: float | None = None
    """of its tokens from production's, 0 the same to 1 disjoint, beyond what chance would show"""
    unseen_pct: float | None = None
    """of production's tokens, those that no calibration prompt holds, percent"""
    length_p50: int
    length_p95: int
    """tokens of a calibration prompt"""
    production_p50: int | None = None
    production_p95: int | None = None
    """input tokens of a request of the traffic"""


class Change(Value):
    """Something the executor did."""

    rule: str
    action: str
    artifact: str | None = None
    command: str = ""
    seconds: float | None = None
    before: dict[str, Scalar] = {}
    after: dict[str, Scalar] = {}
    """measured facts"""
    gate: Literal["passed", "failed", "inconclusive", "not run"]
    detail: str = ""
    accuracy: tuple[Interval, ...] = ()
    """what was measured with its confidence interval, before and after"""
    layers: tuple[LayerSensitivity, ...] = ()
    """sensitivity of the layers to their format, in the model's order"""
    calibration: Calibration | None = None
    serving: tuple[Interval, ...] = ()
    """what a server gave under load: latencies, throughput and the server's own figures, beside what was predicted"""
    training: tuple[Interval, ...] = ()
    """what a training took and gave: seconds, gpu_hours, steps, tokens, peak_gib and the gain of the gate's metric in
    percent points, with what was predicted; of a student its loss against the teacher, in percent"""
    drafts: tuple[DraftLength, ...] = ()
    """speculative decoding by draft length"""


class GridSeries(Value):
    """One deployment over all loads of a Grid. Each tuple has one value per load, in the Grid's order."""

    label: str
    """ "baseline", "plan", or what an alternative is best for"""
    deployment: Deployment
    memory_gib: Memory
    """at the report's own load, per GPU; weights, runtime and capacity hold at every load"""
    fits: tuple[bool, ...]
    kv_cache_gib: tuple[float | None, ...]
    """per GPU"""
    activations_gib: tuple[float | None, ...]
    """per GPU"""
    ttft_ms: tuple[float | None, ...]
    itl_ms: tuple[float | None, ...]
    output_tokens_per_s: tuple[float | None, ...]
    """of the whole deployment"""
    max_concurrency: tuple[int | None, ...]


class Grid(Value):
    """A few deployments estimated over a lattice of loads: the page's what-if sliders read it, nothing is interpolated.

    The load of index (c, i, o) is at (c * len(isl) + i) * len(osl) + o of every tuple.
    """

    concurrency: tuple[int, ...]
    isl: tuple[int, ...]
    """mean input length, tokens"""
    osl: tuple[int, ...]
    """mean output length, tokens"""
    now: tuple[int, int, int]
    """indices of the report's own load in the three axes"""
    series: tuple[GridSeries, ...]
    """the baseline first, the plan second, then the alternatives"""
    best: tuple[int | None, ...]
    """which series the goal and the limits choose at each load; None: none meets the limits"""


class RooflinePoint(Value):
    """Where one phase of a deployment stands under the roofline of one GPU."""

    label: str
    """ "baseline" or "plan" """
    phase: Literal["prefill", "decode"]
    flops_per_byte: float
    """operations per byte of device memory traffic"""
    tflops: float
    """reached by one GPU as estimated"""
    peak_tflops: float
    """dense tensor-core peak of the format the phase computes in"""


class ModelBudget(Value):
    """The largest accuracy loss that a policy allows a group of models."""

    model: str
    """pattern over model names ("meta-llama/*"); a model is held to the first entry that matches it"""
    budget_pct: float
    """percent on the metric"""
    metric: str = "perplexity"
    """as Goal.accuracy_metric"""


class Suppression(Value):
    """A rule that a policy switches off, why, and until when."""

    rule: str
    reason: str
    until: str
    """ISO date; it holds through that day"""
    expired: bool = False
    """True: the date is past, so this is not applied"""


class Policy(Value):
    """What a platform team allows (advise.yaml). Nothing outside it is planned or done."""

    file: str = ""
    """where it was read"""
    allow: tuple[str, ...] = ()
    """rule ids and patterns; a rule that matches none is not used. Empty: every rule"""
    forbid: tuple[str, ...] = ()
    """rule ids and patterns that are not used, whatever `allow` says"""
    deployment: dict[str, tuple[Scalar, ...]] = {}
    """Deployment field -> the values that may be served; for speculation the methods, and no value: never"""
    engines: dict[str, tuple[str, ...]] = {}
    """engine -> version patterns ("1.2.*", ">=1.2"), none: every version. Empty: every engine"""
    accuracy: tuple[ModelBudget, ...] = ()
    ttft_ms: float | None = None
    """limit on the mean time to first token"""
    itl_ms: float | None = None
    """limit on the mean inter-token latency"""
    gpu_hours: float | None = None
    """the most that applying a plan may spend on GPUs"""
    hours: float | None = None
    """the most wall time that applying a plan may take"""
    disk_gib: float | None = None
    """the most that applying a plan may write"""
    training: Literal["never", "ask", "unasked"] = "ask"
    """whether remedies that train (QAT, QAD, distillation, a draft head) may run"""
    tell: tuple[str, ...] = ()
    """patterns of the places that may be told or given a result; empty: none beyond the output folder"""
    rules: str | None = None
    """an overlay folder of rules that goes with the policy"""
    suppress: tuple[Suppression, ...] = ()
    lines: dict[str, int] = {}
    """key ("deployment.weights", "forbid qat/*") -> line of the file"""


class SecondFigure(Value):
    """One figure by both estimators."""

    metric: str
    """a field of Estimate"""
    ours: float
    silicon: float
    difference_pct: float
    """silicon against ours"""


class SecondOpinion(Value):
    """What NVIDIA's measured per-operation data say of a deployment that we estimated (`--estimator silicon`)."""

    label: str
    """baseline, or plan"""
    figures: tuple[SecondFigure, ...] = ()
    """basis silicon; empty: no answer"""
    source: str = ""
    """whose tables"""
    reason: str = ""
    """why there is no answer"""


class Report(Value):
    """Everything: what `advise --format json` prints and `advise report` shows."""

    schema_version: Literal[1] = 1
    profile: Profile
    findings: tuple[Finding, ...]
    plan: Plan
    changes: tuple[Change, ...] = ()
    overrides: tuple[Override, ...] = ()
    versions: dict[str, str]
    command: tuple[str, ...] = ()
    """the arguments that made it, after "advise"; the report prints them quoted for a shell"""
    grid: Grid | None = None
    """for the page's what-if sliders; None: not asked for"""
    roofline: tuple[RooflinePoint, ...] = ()
    policy: Policy | None = None
    """what was allowed; None: no policy was given"""
    second_opinions: tuple[SecondOpinion, ...] = ()
    """of the baseline and the plan; empty: not asked for"""


class Answer(Value):
    """One line of `advise sweep`: a plan in short, or why there is none."""

    key: str
    """of the question, the policy and the program's version: what is done is known by it"""
    question: dict[str, Scalar]
    feasible: bool | None = None
    deployment: Deployment | None = None
    expected: Estimate | None = None
    baseline_output_tokens_per_s: float | None = None
    rules: tuple[str, ...] = ()
    gpus_used: int | None = None
    broken: tuple[str, ...] = ()
    """limits that even the best plan breaks"""
    price_per_gpu_hour: float | None = None
    """as given, in the unit of the prices"""
    cost_per_million_output_tokens: float | None = None
    """price x GPUs used / output tokens per hour, at this load; arithmetic on the estimate"""
    error: str = ""
    hint: str = ""
