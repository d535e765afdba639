"""vLLM on the GPUs of this machine, started and loaded by the advisor's own code: shapes of random weights by deployment.

    python serving.py OUT.json --tokenizer FOLDER [--parts bf16,fp8kv,...] [--dummy] [--smol FOLDER --texts PROMPTS.jsonl]

Serves each deployment and sends requests of fixed lengths at several concurrencies. The checkpoints are made first (bf16; FP8
by ModelOpt; INT4 in GPTQ's layout), or with --dummy only their configurations are written and vLLM fills in random weights.
Written after each server: what a time limit cuts off costs only itself. Needs the advisor, vllm and, without --dummy, modelopt.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advisor import pipeline
from advisor.executor.servers import vllm_engine
from advisor.executor.servers.engines import EngineFailed, Launch, Server, serving
from advisor.executor.servers.load import Request, Round, make_requests, send
from advisor.executor.servers.measuring import figures_of, watched
from advisor.profiler.exposition import parse
from advisor.types import Deployment, Report, Speculation

LEVELS = (1, 8, 32, 64, 128, 256)
MIXED = [(64, 16), (128, 32), (256, 64), (384, 96), (512, 160), (768, 256), (256, 400), (128, 24)]
"""lengths for static against in-flight batching"""
CONFIG = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 49152, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Llama-3.1-8B but for the vocabulary, which is that of the tokenizer at hand: 7.4 B parameters"""
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5}
FP8 = {
    "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": None, "ignore": ["lm_head"]}
}
LARGE = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
SHAPES: dict[str, dict[str, Any]] = {
    "bf16": {**LLAMA, **CONFIG},
    "fp8": {**LLAMA, **CONFIG, **FP8},
    "70b-fp8": {**LLAMA, **CONFIG, **LARGE, **FP8},
    "70b-bf16": {**LLAMA, **CONFIG, **LARGE},
    "eagle3": {
        **LLAMA,
        **CONFIG,
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "draft_vocab_size": 49152,
    },
    "1b": {**LLAMA, **CONFIG, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
}
"""name -> configuration: Llama-3.1-8B and 70B, an EAGLE-3 head and Llama-3.2-1B as drafts, all with this vocabulary"""
LOGGED = re.compile(
    r"(Model loading took .*|Available KV cache memory.*|GPU KV cache size.*|Maximum concurrency.*|Graph capturing finished.*"
    r"|torch\.compile takes .*|init engine .*|Using .* (?:backend|kernel).*|.*[Mm]arlin.*|.*[Mm]achete.*|.*all.?reduce.*)"
)


@dataclass(frozen=True)
class Part:
    """One server and what it is sent."""

    checkpoint: str
    deployment: Deployment
    levels: tuple[int, ...] = LEVELS
    isl: int = 1024
    osl: int = 256
    accepted: float | None = None
    """share of drafted tokens that are accepted, each on condition of those before it: vLLM's synthetic rejection sampling"""
    options: tuple[str, ...] = ()
    clients: int = 1
    """processes that send; one Python process cannot take more than some thousand tokens a second"""
    static: bool = False
    """static batching is tried too, by gating the admission"""
    texts: bool = False
    """the prompts are texts, not random tokens"""


def _drafted(method: Any, length: int, model: str | None = None) -> Deployment:
    return Deployment(
        weights="fp8", kv_cache="fp8", speculation=Speculation(method=method, draft_len=length, draft_model=model)
    )


SPECULATED = (1, 8, 32, 128)
NO_FUSION = ("--compilation-config", '{"pass_config": {"fuse_allreduce_rms": false}}')
"""the fused all-reduce of FlashInfer may use NVLink multicast, which these machines must not"""
PARTS: dict[str, Part] = {
    "bf16": Part("bf16", Deployment()),
    "fp8": Part("fp8", Deployment(weights="fp8")),
    "fp8kv": Part("fp8", Deployment(weights="fp8", kv_cache="fp8"), static=True),
    "int4": Part("int4", Deployment(weights="int4_gptq")),
    "bf16-eager": Part("bf16", Deployment(cuda_graphs=False), (1, 8, 32)),
    "fp8-eager": Part("fp8", Deployment(weights="fp8", kv_cache="fp8", cuda_graphs=False), (1, 8, 32)),
    "fp8kv-plain": Part("fp8", Deployment(weights="fp8", kv_cache="fp8"), SPECULATED),
    "fp8kv-eagle3": Part("fp8", _drafted("eagle3", 3, "eagle3"), SPECULATED, accepted=0.7),
    "fp8kv-draft1b": Part("fp8", _drafted("draft", 3, "1b"), SPECULATED, accepted=0.7),
    "fp8kv-ngram": Part("fp8", _drafted("ngram", 3), SPECULATED),
    "fp8kv-clients": Part("fp8", Deployment(weights="fp8", kv_cache="fp8"), (64, 128, 256), clients=8),
    "fp8kv-fronts": Part(
        "fp8", Deployment(weights="fp8", kv_cache="fp8"), (64, 128, 256), clients=8, options=("--api-server-count", "4")
    ),
    "smol": Part("smol", Deployment(), (1, 8), 256, 256, texts=True),
    "smol-ngram": Part("smol", Deployment(speculation=Speculation(method="ngram", draft_len=3)), (1, 8), 256, 256, texts=True),
    "70b-fp8-tp2": Part(
        "70b-fp8", Deployment(weights="fp8", kv_cache="fp8", tensor_parallel=2), (1, 8, 32, 128), options=NO_FUSION, clients=2
    ),
    "70b-fp8-tp4": Part(
        "70b-fp8", Deployment(weights="fp8", kv_cache="fp8", tensor_parallel=4), (1, 8, 32, 128), options=NO_FUSION, clients=2
    ),
    "bf16-tp2": Part("bf16", Deployment(tensor_parallel=2), (1, 8, 32, 128), options=NO_FUSION, clients=2),
    "bf16-tp4": Part("bf16", Deployment(tensor_parallel=4), (1, 8, 32, 128), options=NO_FUSION, clients=2),
}


def write_shapes(folder: Path, tokenizer: Path) -> None:
    """Each shape's folder: a configuration and a tokenizer, no weights."""
    for name, config in SHAPES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in tokenizer.iterdir():
            if path.suffix != ".safetensors" and path.is_file():
                shutil.copy(path, folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))


def make_checkpoints(folder: Path, tokenizer: Path) -> dict[str, float]:
    """bf16, fp8 and int4 under `folder`; seconds of each."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    seconds: dict[str, float] = {}
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(**CONFIG)
    config.architectures = ["LlamaForCausalLM"]
    began = time.monotonic()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "bf16", max_shard_size="4GB")
    seconds["bf16"] = time.monotonic() - began
    began = time.monotonic()
    write_gptq(model.config.to_dict(), folder / "int4")
    seconds["int4"] = time.monotonic() - began
    began = time.monotonic()
    batches = [torch.randint(100, CONFIG["vocab_size"], (8, 512), device="cuda") for _ in range(4)]

    def loop(it: Any) -> None:
        with torch.no_grad():
            for batch in batches:
                it(batch)

    mtq.quantize(model, mtq.FP8_DEFAULT_CFG, loop)
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder / "fp8")
    seconds["fp8"] = time.monotonic() - began
    for name in ("bf16", "fp8", "int4"):
        words.save_pretrained(folder / name)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return {name: round(took, 1) for name, took in seconds.items()}


def write_gptq(config: dict[str, Any], folder: Path, group: int = 128) -> None:
    """A checkpoint in GPTQ's layout (4 bits, symmetric, groups of 128, no act-order), random integers and plausible scales."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    hidden, wide, heads = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, config["num_attention_heads"] * heads),
        "self_attn.k_proj": (hidden, config["num_key_value_heads"] * heads),
        "self_attn.v_proj": (hidden, config["num_key_value_heads"] * heads),
        "self_attn.o_proj": (config["num_attention_heads"] * heads, hidden),
        "mlp.gate_proj": (hidden, wide), "mlp.up_proj": (hidden, wide), "mlp.down_proj": (wide, hidden),
    }  # fmt: skip
    tensors: dict[str, Any] = {}

    def normal(*shape: int) -> Any:
        return (torch.randn(shape, device="cuda") * 0.02).bfloat16().cpu()

    tensors["model.embed_tokens.weight"] = normal(config["vocab_size"], hidden)
    tensors["lm_head.weight"] = normal(config["vocab_size"], hidden)
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}.{norm}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        for name, (k, n) in shapes.items():
            words = torch.randint(-(2**31), 2**31 - 1, (k // 8, n), device="cuda", dtype=torch.int64).to(torch.int32)
            tensors[f"{stem}.{name}.qweight"] = words.cpu()
            tensors[f"{stem}.{name}.qzeros"] = torch.full((k // group, n // 8), 0x77777777, dtype=torch.int32)
            tensors[f"{stem}.{name}.scales"] = ((torch.rand(k // group, n, device="cuda") + 0.5) * 0.004).half().cpu()
            tensors[f"{stem}.{name}.g_idx"] = (torch.arange(k) // group).to(torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True, "lm_head": False}
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16", "quantization_config": quantized}))


def serve(
    part: Part, folder: Path, report: Report, log: Path, texts: Sequence[Sequence[int]], dummy: bool, rough: bool
) -> dict[str, Any]:
    """One server: its start, what its log says of memory, and its figures at each concurrency."""
    installed = vllm_engine.find()
    deployment = part.deployment
    if deployment.speculation is not None and deployment.speculation.draft_model is not None:
        draft = str(folder / deployment.speculation.draft_model)
        speculation = deployment.speculation.model_copy(update={"draft_model": draft})
        deployment = deployment.model_copy(update={"speculation": speculation})
    launch = vllm_engine.launch(report.plan, deployment, report.profile, installed, checkpoint=folder / part.checkpoint)
    extra = ("--max-num-seqs", "256", "--no-enable-prefix-caching", *part.options)
    if not installed.cpu:
        extra += ("--max-model-len", "4096")
    if dummy and part.checkpoint in SHAPES:
        extra += ("--load-format", "dummy")
    launch = _accepting(replace(launch, command=(*launch.command, *extra)), part)
    entry: dict[str, Any] = {
        "deployment": part.deployment.model_dump(),
        "accepted": part.accepted,
        "clients": part.clients,
        "vllm": installed.version,
        "command": list(launch.command[3:]),
    }
    try:
        with serving(launch, log=log, deadline=300) as server:
            entry["healthy_after_s"] = round(server.seconds or 0.0, 1)
            entry["levels"] = list(_levels(server, report.profile.model.vocab, part, texts, rough))
            if part.static:
                entry["batching"] = list(_batching(server, report.profile.model.vocab, rough))
    except EngineFailed as error:
        entry["error"] = f"{error.what}: {error.hint}"[-3000:]
    entry["log"] = [
        match.group(0)[:200] for match in map(LOGGED.search, log.read_text(errors="replace").splitlines()) if match
    ][:40]
    return entry


def _accepting(launch: Launch, part: Part) -> Launch:
    """The launch with drafts accepted at the part's rate at every batch, whatever they say."""
    command = list(launch.command)
    if "--speculative-config" in command:
        at = command.index("--speculative-config") + 1
        config = json.loads(command[at])
        config.pop("num_speculative_tokens_per_batch_size", None)
        if part.accepted is not None:
            count = config["num_speculative_tokens"]
            rates = [round(part.accepted**number, 4) for number in range(1, count + 1)]
            config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
        command[at] = json.dumps(config)
    return replace(launch, command=tuple(command))


def send_from(clients: int, server: Server, requests: Sequence[Request], level: int, seconds: float) -> Round:
    """One round, its requests and slots dealt to so many processes; the clock is the machine's, so their times compare."""
    clients = min(clients, level)
    if clients == 1:
        return send(server, requests, "in-flight", level, seconds)
    slots = [level // clients + (number < level % clients) for number in range(clients)]
    with ProcessPoolExecutor(clients, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.5] * clients))  # every process is there before the first sends
        jobs = [
            pool.submit(send, server, requests[number::clients], "in-flight", slots[number], seconds)
            for number in range(clients)
        ]
        rounds = [job.result() for job in jobs]
    answers = tuple(answer for one in rounds for answer in one.answers)
    return Round(
        answers, level, min(one.started for one in rounds), max(one.ended for one in rounds), any(one.cut for one in rounds)
    )


def _levels(server: Server, vocab: int, part: Part, texts: Sequence[Sequence[int]], rough: bool) -> Iterator[dict[str, Any]]:
    isl, osl = (64, 16) if rough else (part.isl, part.osl)
    send(server, make_requests([(isl, 8)], 4, vocab=vocab, seed=1), "in-flight", 4, 60)
    for level in (1, 4) if rough else part.levels:
        count = 3 if level == 1 else 2 * level if level <= 64 else 3 * level // 2
        given = texts if part.texts else ()
        requests = make_requests([(isl, osl)], count, vocab=vocab, seed=1000 + level, texts=given, first=level)
        with watched(server, lambda text: parse(text, "the server's metrics").values) as seen:
            found = send_from(part.clients, server, requests, level, 120)
        row = {
            "concurrency": level,
            "isl": isl,
            "osl": osl,
            "requests": len(found.good),
            "errors": len(found.answers) - len(found.good),
        }
        if found.good:
            row |= {name: round(value, 4) for name, value in figures_of(found).items()}
            row |= {"seconds": round(found.ended - found.started, 2), **_steady(found, level)}
        yield row | {f"server_{name}": round(value, 4) for name, value in seen.items()}


def _steady(found: Any, level: int) -> dict[str, float]:
    """The first wave's decoding alone: after its last first token and before its first last one, every slot decodes."""
    wave = sorted(found.good, key=lambda answer: answer.sent)[:level]
    from_, until = max(a.first or a.last for a in wave), min(a.last for a in wave)
    return {"first_wave_ttft_ms_max": round(1e3 * max((a.first or a.last) - a.sent for a in wave), 2),
            "first_wave_overlap_s": round(until - from_, 3)}  # fmt: skip


def _batching(server: Server, vocab: int, rough: bool) -> Iterator[dict[str, Any]]:
    slots, count = (4, 16) if rough else (32, 128)
    for turn in range(1 if rough else 2):
        for admission in ("static", "in-flight"):
            requests = make_requests(MIXED, count, vocab=vocab, seed=77 + turn)
            found = send(server, requests, admission, slots, 120)  # type: ignore[arg-type]
            figures = {name: round(value, 4) for name, value in figures_of(found).items()}
            lengths = [(len(r.prompt), r.osl) for r in requests]
            yield {"admission": admission, "slots": slots, "lengths": lengths if not turn else [], **figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--parts", default="bf16,fp8kv,fp8,bf16-eager,fp8kv-ngram", help="by default those of one GPU and no draft"
    )
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/serving"))
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dummy", action="store_true", help="write configurations only; vLLM fills in random weights")
    parser.add_argument("--smol", type=Path, help="SmolLM2's folder, for the parts that serve it")
    parser.add_argument("--texts", type=Path, help="prompts for those parts, a JSON object with a text a line")
    parser.add_argument("--tiny", type=Path, help="a small model that is there, instead of every checkpoint: a dry run")
    parser.add_argument("--limit", type=float, default=560.0)
    options = parser.parse_args()
    began = time.monotonic()
    os.environ.setdefault("ADVISE_VLLM_PYTHON", sys.executable)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"servers": {}}
    folder, parts = options.folder, {name: PARTS[name] for name in options.parts.split(",")}
    folder.mkdir(parents=True, exist_ok=True)
    if options.tiny:
        for name in {part.checkpoint for part in parts.values()} - {path.name for path in folder.iterdir()}:
            (folder / name).symlink_to(options.tiny)
    elif options.dummy:
        write_shapes(folder, options.tokenizer)
    elif not (folder / "bf16").exists():
        results["made_s"] = make_checkpoints(folder, options.tokenizer)
        print("made", results["made_s"], flush=True)
    if options.smol and not (folder / "smol").exists():
        (folder / "smol").symlink_to(options.smol)
    texts: list[list[int]] = []
    if options.texts:
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(options.tokenizer)
        texts = [words(json.loads(line)["text"])["input_ids"] for line in options.texts.read_text().splitlines()]
    for name, part in parts.items():
        if time.monotonic() - began > options.limit - 90:
            print("no time was left for", name, flush=True)
            break
        gpus = part.deployment.tensor_parallel
        place = str(folder / part.checkpoint)
        report = pipeline.advise(
            pipeline.profile(place, gpu="h100", gpus=gpus, engine="vllm", isl=part.isl, osl=part.osl, concurrency=32)
        )
        log = options.out.with_name(f"{name}.log")
        entry = serve(part, folder, report, log, texts, options.dummy, bool(options.tiny))
        results["servers"][name] = entry
        options.out.write_text(json.dumps(results))
        rates = [(row["concurrency"], row.get("itl_ms"), row.get("output_tokens_per_s")) for row in entry.get("levels", [])]
        print(name, entry.get("healthy_after_s"), rates, entry.get("error", "")[-1500:], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
