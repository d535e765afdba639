"""What vLLM makes of the files that the executor exported: the held-out prompts' loss in nats a token, one engine a checkpoint.

    python read_back.py OUT.json FOLDER PROMPTS.jsonl [--calibration 16] [--held-out 32] [--tokens 128]

FOLDER holds a checkpoint a sub-folder (smollm.py --keep), or links to them. The prompts are those that smollm.py judges by, so
that its figure "nats", of the advisor's own reader, can be set beside. Needs vllm and a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def read(folder: Path, sequences: list[list[int]], seconds_from: float) -> dict[str, Any]:
    """Mean negative log-likelihood of the sequences' tokens after the first, by the engine; its error as text, which crosses
    processes whatever it holds."""
    from vllm import LLM, SamplingParams

    try:
        engine = LLM(
            str(folder), enforce_eager=True, gpu_memory_utilization=0.2, max_model_len=1024, enable_prefix_caching=False
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}
    asked: Any = [{"prompt_token_ids": ids} for ids in sequences]
    answers = engine.generate(asked, SamplingParams(max_tokens=8, temperature=0.0, prompt_logprobs=0), use_tqdm=False)
    nats, tokens = 0.0, 0
    for ids, answer in zip(sequences, answers, strict=True):
        for token, seen in list(zip(ids, answer.prompt_logprobs or (), strict=True))[1:]:
            nats -= seen[token].logprob  # type: ignore[index]
            tokens += 1
    return {"nats": nats / tokens, "tokens": tokens, "seconds": round(time.time() - seconds_from, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompts", type=Path)
    for flag, default in (("calibration", 16), ("held-out", 32), ("tokens", 128)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    options = parser.parse_args()
    from transformers import AutoTokenizer

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    rows: list[dict[str, Any]] = []
    for folder in sorted(path for path in options.folder.iterdir() if (path / "config.json").is_file()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [json.loads(line)["text"] for line in options.prompts.read_text().splitlines()]
        first, last = options.calibration, options.calibration + options.held_out
        sequences = [tokenizer(text)["input_ids"][: options.tokens] for text in texts[first:last]]
        try:
            # a process each: an engine does not give all of its memory back
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows.append(
                    {"checkpoint": folder.name, **pool.submit(read, folder, sequences, time.time()).result(timeout=200)}
                )
        except Exception as error:
            rows.append({"checkpoint": folder.name, "error": f"{type(error).__name__}: {error}"[:500]})
        options.out.write_text(json.dumps({"rows": rows}))
        print(rows[-1], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
