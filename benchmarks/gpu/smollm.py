"""The executor's own trials of SmolLM2-135M on this machine's GPU (or CPU): accuracy of the exported files by scheme.

    python smollm.py OUT.json MODEL_FOLDER PROMPTS.jsonl [--schemes fp8,...] [--calibration 16] [--held-out 32] [--tokens 128]
                     [--keep FOLDER]

Each scheme is made, exported, read back and measured by advisor/executor/judging/trial.py, as `advise apply` does; the figures
are of the exported files against the unquantized model. AutoQuantize: four-bit layers beside FP8 at 5 and 6 effective bits.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from advisor.executor.bookkeeping.journal import Journal
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.judging import evaluation
from advisor.executor.judging.trial import Bench
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.quantization import Scheme

SCHEMES = {
    "fp8": Scheme("fp8"),
    "bf16+kv": Scheme("bf16", "fp8"),
    "fp8+kv": Scheme("fp8", "fp8"),
    "fp8_rowwise": Scheme("fp8_rowwise"),
    "fp8_block": Scheme("fp8_block"),
    "int8_wo": Scheme("int8_wo"),
    "int8_sq": Scheme("int8_sq", alpha=0.8),
    "int4_awq": Scheme("int4_awq", group=64),
    "int4_gptq": Scheme("int4_gptq", group=64),
    "w4a8_awq": Scheme("w4a8_awq", group=64),
    "nvfp4": Scheme("nvfp4"),
    "nvfp4+kv": Scheme("nvfp4", "fp8"),
}


def figures(blocks: Any) -> dict[str, Any]:
    """Loss of perplexity in percent, KL and top-1 with their 95 % intervals."""
    found = {
        one.metric: [one.value, one.low, one.high]
        for one in evaluation.measure(blocks, "exported", limit_on="perplexity", budget_pct=None)
    }
    tokens = sum(b.tokens for b in blocks)
    nats = {"nats": sum(b.other for b in blocks) / tokens, "nats_unquantized": sum(b.original for b in blocks) / tokens}
    return {"loss_pct": list(evaluation.loss_pct(blocks, "perplexity")), **found, **nats, "tokens": tokens}


def trial(bench: Bench, name: str, scheme: Scheme, calibration: Any, held_out: Any, keep: Path | None) -> dict[str, Any]:
    """One scheme, from a fresh model to the figures of its files, which are copied to `keep`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    made = bench.run(name, scheme, calibration, held_out)
    took = time.monotonic() - began
    row = {"scheme": name, "plain": scheme.plain(), "seconds": made.seconds, "total_s": round(took, 2), "size_mb": made.size_mb}
    row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else made.peak_gib
    row["in_memory"] = figures(made.in_memory)
    row["exported"] = figures(bench.measure(name, made, held_out))
    if keep:
        shutil.copytree(made.folder, keep / name.replace(" ", "-"), dirs_exist_ok=True)
    return row


def mixed(bench: Bench, weights: str, bits: float, calibration: Any, held_out: Any, keep: Path | None) -> dict[str, Any]:
    """AutoQuantize at so many effective bits, then the trial of what it chose."""
    base = Scheme(weights, group=64 if weights == "int4_awq" else None)  # type: ignore[arg-type]
    began = time.monotonic()
    found = bench.sensitivities(f"{weights}-{bits:g}", base, calibration, bits=bits, with_fp8=True)
    took = time.monotonic() - began
    scheme = replace(base, wide=found.wide, wide_fp8=found.wide_fp8)
    row = trial(bench, f"auto {weights} {bits:g}", scheme, calibration, held_out, keep)
    return row | {"search_s": round(took, 2), "bits": found.bits, "wide": len(found.wide), "wide_fp8": len(found.wide_fp8)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--auto", default="nvfp4:6,int4_awq:6", help="AutoQuantize runs, format:bits")
    parser.add_argument("--keep", type=Path, help="a folder for the exported files, those that read_back.py reads")
    for flag, default in (("calibration", 16), ("held-out", 32), ("tokens", 128)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    options = parser.parse_args()
    tokenizer = causal_model.load_tokenizer(options.model)
    texts = [json.loads(line)["text"] for line in options.prompts.read_text().splitlines()]
    sequences = [tuple(tokenizer(text)["input_ids"][: options.tokens]) for text in texts]
    calibration = tuple(sequences[: options.calibration])
    held_out = tuple(sequences[options.calibration : options.calibration + options.held_out])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "work") as journal:
        bench = Bench(options.model, journal, Progress("json", Path(folder, "log").open("w")), 0)  # noqa: SIM115
        began = time.monotonic()
        bench.original(held_out)
        rows.append({"scheme": "original", "total_s": round(time.monotonic() - began, 2)})
        jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            (name, partial(trial, bench, name, SCHEMES[name], calibration, held_out, options.keep))
            for name in filter(None, options.schemes.split(","))
        ]
        for wanted in filter(None, options.auto.split(",")):
            weights, _, bits = wanted.partition(":")
            jobs.append((wanted, partial(mixed, bench, weights, float(bits), calibration, held_out, options.keep)))
        settings = {"cuda": torch.cuda.is_available(), "calibration": len(calibration), "held_out": len(held_out)}
        for name, job in jobs:
            try:
                rows.append(job())
            except Exception as error:
                rows.append({"scheme": name, "error": f"{type(error).__name__}: {error}"[:600]})
            options.out.write_text(json.dumps({**settings, "tokens": options.tokens, "rows": rows}))
            row = rows[-1]
            print(name, row.get("total_s"), row.get("peak_gib"), row.get("exported", row.get("error")), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
