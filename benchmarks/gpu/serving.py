"""vLLM on the GPU of this machine, started and loaded by the advisor's own code: an 8B Llama of random weights by format.

    python serving.py OUT.json [--parts bf16,fp8kv,...] [--tiny MODEL_FOLDER]

Makes the checkpoints (bf16; FP8 by ModelOpt; INT4 in GPTQ's layout), then serves each deployment and sends requests of fixed
lengths at several concurrencies. Written after each server: what a time limit cuts off costs only itself. Needs the advisor,
vllm and modelopt beside torch; --tiny dry-runs the bf16 parts on a small model that is there, with vLLM's CPU build too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor import pipeline
from advisor.executor.servers import vllm_engine
from advisor.executor.servers.engines import EngineFailed, Server, serving
from advisor.executor.servers.load import make_requests, send
from advisor.executor.servers.measuring import figures_of, watched
from advisor.profiler.exposition import parse
from advisor.types import Deployment, Report, Speculation

ISL, OSL = 1024, 256
LEVELS = (1, 8, 32, 64, 128, 256)
MIXED = [(64, 16), (128, 32), (256, 64), (384, 96), (512, 160), (768, 256), (256, 400), (128, 24)]
"""lengths for static against in-flight batching"""
CONFIG = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 49152, "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Llama-3.1-8B but for the vocabulary, which is that of the tokenizer at hand: 7.4 B parameters"""
LOGGED = re.compile(
    r"(Model loading took .*|Available KV cache memory.*|GPU KV cache size.*|Maximum concurrency.*|Graph capturing finished.*"
    r"|torch\.compile takes .*|init engine .*|Using .* (?:backend|kernel).*|.*[Mm]arlin.*|.*[Mm]achete.*)"
)
PARTS: dict[str, tuple[str, Deployment, tuple[int, ...]]] = {
    "bf16": ("bf16", Deployment(), LEVELS),
    "fp8": ("fp8", Deployment(weights="fp8"), LEVELS),
    "fp8kv": ("fp8", Deployment(weights="fp8", kv_cache="fp8"), LEVELS),
    "int4": ("int4", Deployment(weights="int4_gptq"), LEVELS),
    "fp8ngram3": ("fp8", Deployment(weights="fp8", speculation=Speculation(method="ngram", draft_len=3)), (1, 8, 32, 128)),
    "bf16-eager": ("bf16", Deployment(cuda_graphs=False), (1, 32)),
}
"""name -> checkpoint, deployment, concurrencies"""
STATIC = ("fp8kv",)
"""servers on which static batching is tried too, by gating the admission"""


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


def serve(part: str, folder: Path, report: Report, log: Path, levels: tuple[int, ...], rough: bool) -> dict[str, Any]:
    """One server: its start, what its log says of memory, and its figures at each concurrency."""
    name, deployment, _ = PARTS[part]
    installed = vllm_engine.find()
    launch = vllm_engine.launch(report.plan, deployment, report.profile, installed, checkpoint=folder / name)
    extra = ("--max-num-seqs", "256", "--no-enable-prefix-caching")
    if not installed.cpu:
        extra += ("--max-model-len", "4096")
    launch = replace(launch, command=(*launch.command, *extra))
    entry: dict[str, Any] = {
        "deployment": deployment.model_dump(),
        "vllm": installed.version,
        "command": list(launch.command[3:]),
    }
    try:
        with serving(launch, log=log, deadline=300) as server:
            entry["healthy_after_s"] = round(server.seconds or 0.0, 1)
            entry["levels"] = list(_levels(server, report.profile.model.vocab, levels, rough))
            if part in STATIC:
                entry["batching"] = list(_batching(server, report.profile.model.vocab, rough))
    except EngineFailed as error:
        entry["error"] = f"{error.what}: {error.hint}"[-3000:]
    entry["log"] = [match.group(0)[:200] for match in map(LOGGED.search, log.read_text(errors="replace").splitlines()) if match]
    return entry


def _levels(server: Server, vocab: int, levels: tuple[int, ...], rough: bool) -> Iterator[dict[str, Any]]:
    isl, osl = (64, 16) if rough else (ISL, OSL)
    send(server, make_requests([(isl, 8)], 4, vocab=vocab, seed=1), "in-flight", 4, 60)
    for level in levels:
        count = 3 if level == 1 else 2 * level if level <= 64 else 3 * level // 2
        requests = make_requests([(isl, osl)], count, vocab=vocab, seed=1000 + level)
        with watched(server, lambda text: parse(text, "the server's metrics").values) as seen:
            found = send(server, requests, "in-flight", level, 120)
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
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/serving"))
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--tiny", type=Path, help="a small model that is there, instead of the 8B")
    parser.add_argument("--limit", type=float, default=560.0)
    options = parser.parse_args()
    began = time.monotonic()
    os.environ.setdefault("ADVISE_VLLM_PYTHON", sys.executable)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"servers": {}}
    folder = options.folder
    if options.tiny:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "bf16").exists():
            (folder / "bf16").symlink_to(options.tiny)
    elif not (folder / "bf16").exists():
        results["made_s"] = make_checkpoints(folder, options.tokenizer)
        print("made", results["made_s"], flush=True)
    profile = pipeline.profile(str(folder / "bf16"), gpu="h100", engine="vllm", isl=ISL, osl=OSL, concurrency=32)
    report = pipeline.advise(profile)
    for part in options.parts.split(","):
        if time.monotonic() - began > options.limit - 90:
            print("no time was left for", part, flush=True)
            break
        levels = (1, 4) if options.tiny else PARTS[part][2]
        log = options.out.with_name(f"{part}.log")
        entry = serve(part, folder, report, log, levels, bool(options.tiny))
        results["servers"][part] = entry
        options.out.write_text(json.dumps(results))
        rates = [(row["concurrency"], row.get("itl_ms"), row.get("output_tokens_per_s")) for row in entry.get("levels", [])]
        print(part, entry.get("healthy_after_s"), rates, entry.get("error", "")[-1500:], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
