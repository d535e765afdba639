"""What a serving engine adds to the GPU's own work, by release: host time, gaps between kernels, memory it keeps.

Data: profiles/constants/_engines.yaml, fitted by benchmarks/fit.py on published measurements, in cross-validation by
whole groups (docs/accuracy.md). A release takes the last entry whose `from` it reaches,
a version without a number (a development build) the newest.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from advisor import library
from advisor.estimator.shapes import WEIGHT_BITS
from advisor.types import Engine, WeightFormat

NEWEST = (9999,)
ADA = "l40s"
"""whose clocks under sustained load are other than Hopper's"""


class Runtime(NamedTuple):
    """Constants of one engine release. Times in microseconds, memory in GiB."""

    name: str
    sequence_us: float
    """host and sampling time per sequence in flight and step"""
    waiting_us: float
    """host time per sequence of the whole engine and step, in the step or not (other pipeline stages' micro-batches)"""
    pipeline_us: float
    """what taking or handing on a sequence's new token adds to sequence_us: it passes from the last pipeline stage to the first
    and on, so that of two stages one sends and one receives, and of more most do both (_executor_loop_pp of
    tensorrt_llm/_torch/pyexecutor/py_executor.py: "send/recv chain: (pp_size - 1) -> 0 -> 1 -> ... -> (pp_size - 2)")"""
    stage_messages: float
    """messages of the residual stream's size that a pipeline stage takes in and sends on between its kernels: hidden states,
    and in PyTorch also the residual (tensorrt_llm/_torch/models/modeling_utils.py, forward_before_send)"""
    step_us: float
    """host time per step"""
    request_ms: float
    """from a request's arrival to its first prompt step: HTTP, tokenisation, scheduling"""
    layer_us: float
    """gaps between the kernels of a layer and its element-wise kernels, with CUDA graphs"""
    moe_layer_us: float
    """the same of a layer's router, permutation and finalisation, which the kernel tables of experts leave out"""
    scan_layer_us: float
    """the same of a recurrent layer's gates and norms; 0 where nothing published determines it"""
    passes: float
    """times that element-wise kernels read or write a token's residual stream, per layer"""
    wide: float
    """times that they read or write what lies between a layer's matrices"""
    overlap: float
    """1: host and GPU work add up; larger: they overlap, (gpu^overlap + host^overlap)^(1/overlap)"""
    runtime_gib: float
    """CUDA context, libraries, graphs and buffers"""
    cache_share: float
    """of the memory left (TensorRT-LLM) or of all memory (vLLM, SGLang) that is used"""
    shares_left: bool
    share_grows: bool
    """whether the engine itself takes a larger share where the weights need it (SGLang chooses mem_fraction_static)"""
    block: int
    """tokens per KV block"""
    tokens: int
    """default tokens per step"""
    batch: int
    """default sequences per step"""
    pads: bool
    """whether offline runs capture CUDA graphs for some numbers of sequences, to which a step without prompts is filled up"""
    prompts_apart: bool
    """whether prompts run in steps of their own while the running sequences wait: SGLang takes a batch of prompts first where
    there is one (python/sglang/srt/managers/scheduler.py, get_next_batch_to_run) unless --enable-mixed-chunk is given"""
    built: bool
    """whether offline runs use engines that trtllm-bench built for their lengths"""
    eager_layer_us: float
    eager_moe_us: float
    eager_mla_us: float
    """launching a layer's kernels one by one, and what experts and latent attention add: a step with prompts, which runs
    without CUDA graphs, cannot be faster than its launches"""
    eager_block_us: float
    """launching the kernel that quantizes the tokens before a multiplication with FP8 block scales"""
    uncompiled_layer_us: float
    """launching a layer's kernels one by one where CUDA graphs are off and the engine's compilation with them"""
    lookup_us: float
    lookup_sequence_us: float
    """host time per step of looking n-grams up, and per sequence: vLLM gives asynchronous scheduling up for it"""
    draft_us: float
    """host time per token that a draft model of its own drafts; 0 where its steps are CUDA graphs"""
    cold_launches: float
    """times that launching takes longer for a lone prompt than for steps among others: DeepSeek-R1 on TensorRT-LLM 1.1 and 1.2
    took 80 to 100 ms a lone or opening prompt and 45 to 50 ms in a step among others (TTFT and ITL of InferenceX)"""
    window_attention: bool
    """whether sliding-window layers attend only to their window"""
    window_cache: bool
    """whether the cache of a sliding-window layer is only as long as its window by default"""
    sampling: float
    """times that sampling reads or writes the FP32 logits"""
    fmha8: bool
    """whether prompts over an FP8 cache are attended in FP8"""
    gen_moe: tuple[str, ...]
    """formats whose experts on several GPUs run NVIDIA's generated Blackwell kernels (moe_backend TRTLLM) rather than CUTLASS
    or DeepGEMM; published single-GPU runs fit CUTLASS"""
    quantized_gather: bool
    """whether tokens are quantized before attention-DP ranks gather them for the experts"""
    logits_rows: int
    """rows of logits that are live at once in the memory reserved for activations"""
    launch: float
    """fixed time of a matrix multiplication relative to the tables': launches that overlap cost less"""
    gemm16: float
    gemm8: float
    gemm8_ada: float
    gemm_block: float
    gemm4: float
    decode: float
    prefill: float
    moe16: float
    moe8: float
    moe_block: float
    moe4: float
    """time of this release's kernels relative to those that the tables of profiles/constants measured (moe4: also of generated
    kernels in other formats); of matrix multiplications only the compute-bound part: it also carries the lower clocks under
    sustained load"""
    scatter_us: float
    scatter_passes: float
    """what DeepGEMM's experts, those of FP8 block scales on Blackwell, cost besides: per layer, and times that a token's choice
    is read or written. TensorRT-LLM scattered tokens in 32 bits to a padded block of rows for each expert and quantized 128
    values at a time with an atomic operation for every scale (_torch/modules/fused_moe/fused_moe_deepgemm.py before 1.2)"""
    wire_latency: float
    wire_bandwidth: float
    wire_ring: float
    """the same for collectives: their latencies, their time per byte on switches that add (Hopper's and later) and on
    those that only pass on, A100's"""
    ring_us: float
    ring_ampere_us: float
    """of one message of NCCL's rings among GPUs of one host, A100's apart; 0: all-reduces are the tables' own kernels"""
    pair_us: float
    """what is added between two GPUs"""
    ring_mb: float
    """MB at which NCCL takes over from them"""
    gathers: bool
    """whether the experts' buffers hold the tokens of all attention-DP ranks at once (TensorRT-LLM's; vLLM's work in chunks)"""
    exchange: float
    """time in which attention-DP ranks exchange tokens over NVLink, relative to all-gather and reduce-scatter: from 1.2
    TensorRT-LLM's ranks write into each other's memory instead"""
    balance_steps: float
    """steps that a prompt waits under attention-DP until the other ranks have prompts too: half of the 60 (timeout_iters) that
    the published attention_dp_config of TensorRT-LLM's own tables and of InferenceX allow"""
    pcie_latency_us: float
    """of one message of an all-reduce's ring over PCIe"""
    pcie_staged_us: float
    pcie_pair_ms: float
    pcie_staged_share: float
    """the same where the published figures show that PCIe peers reach each other through host memory, A100 PCIe; what a step of
    two takes longer; the share of the others' bus where the ring spans both sockets' memory"""
    pcie_share: float
    pcie_far_share: float
    """share of the bus that an all-reduce reaches among up to four GPUs and among more, which sit on two sockets"""
    wo_compute: float
    wo_memory: float
    wo_rows: float
    """weight-only formats without a measured kernel: share of the 16-bit kernel's compute and memory rates, and the rows
    that are multiplied at least"""
    w4a8_compute: float
    w4a8_memory: float
    w4a8_rows: float
    """the same of INT4 weights with FP8 activations, relative to the FP8 peak"""
    fused_fp4: float
    """share of the activation quantization in the NVFP4 kernel table that the engine fuses away"""

    def dense(self, weights: WeightFormat, gpu: str) -> float:
        """The factor on matrix multiplications with weights of this format, in kernels that were measured on `gpu`."""
        if weights == "fp8_block":
            return self.gemm_block
        bits = WEIGHT_BITS[weights]
        if bits == 8:
            return self.gemm8_ada if gpu == ADA else self.gemm8
        return self.gemm16 if bits == 16 else self.gemm4

    def routed(self, weights: WeightFormat) -> float:
        """The factor on experts with weights of this format."""
        if weights == "fp8_block":
            return self.moe_block
        bits = WEIGHT_BITS[weights]
        return self.moe16 if bits == 16 else self.moe8 if bits == 8 else self.moe4


@cache
def _entries() -> dict[str, Any]:
    data = library.profile("constants", "_engines")
    assert isinstance(data, dict)
    return data


@cache
def runtime(name: str, version: str, host: str) -> Runtime:
    """The constants of an engine release on a host CPU ("x86" or "grace")."""
    entries = _entries()[name]
    number = _number(version)
    chosen: dict[str, Any] = {}
    for entry in entries:
        if number >= _number(str(entry.get("from", "0"))):
            chosen = {**chosen, **entry}
    slower = chosen.get("grace_factor", 1.0) if host == "grace" else 1.0
    values = {field: chosen[field] for field in Runtime._fields if field != "name"}
    values["sequence_us"] *= slower
    values["pipeline_us"] *= slower
    values["step_us"] *= slower
    values["waiting_us"] *= slower
    values["gen_moe"] = tuple(values["gen_moe"])
    return Runtime(name=name, **values)


def host_of(gpu: str | None) -> str:
    """The CPU beside a GPU: Grace for GH200, GB200, GB300 and GB10, else x86."""
    return "grace" if gpu in _entries()["grace"] else "x86"


def runtime_of(engine: Engine, gpu: str | None) -> Runtime:
    """The constants of this engine beside this GPU."""
    return runtime(engine.name, engine.version, host_of(gpu))


def _number(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version.strip())
    return tuple(int(part) for part in found.group().split(".")) if found else NEWEST
