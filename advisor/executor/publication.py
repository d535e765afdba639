"""The output folder: put together beside its place, then renamed into it, so that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem
from advisor.executor import causal_model
from advisor.executor.checkpoint import quantization_record
from advisor.executor.journal import Journal, file_errors, hash_folder, sync_and_hash, sync_folder
from advisor.executor.request import Outcome, Pages, Request
from advisor.executor.site import CHECKPOINT
from advisor.executor.trial import Trial
from advisor.types import Calibration, Change, Scalar

COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE", "NOTICE",
)  # fmt: skip
"""of the model's own files, those that the export does not write"""
STUDENT = "student"
"""folder of a student at 16 bits, beside the checkpoint that was quantized from it"""
QUANTIZED = """Made by `advise apply` with NVIDIA ModelOpt. transformers does not read this checkpoint: it loads it without
an error and computes nonsense. Serve it with an engine that reads ModelOpt's unified checkpoints."""
DISTILLED = "Made by `advise apply`: an ordinary 16-bit checkpoint with fewer layers than its teacher, distilled from it."


def publish(
    journal: Journal,
    request: Request,
    trial: Trial | None,
    changes: tuple[Change, ...],
    measured: dict[str, Scalar],
    pages: Pages,
    *,
    passed: bool,
    summary: str,
    student: Path | None = None,
) -> Outcome:
    """Write everything and rename it into place; when the gate did not pass, the pages go into the work folder alone.

    student: a 16-bit model that was distilled: the checkpoint where no trial quantized it, else beside the checkpoint.

    Raises FileProblem; then the output folder is not there and the run can be resumed.
    """
    outcome = Outcome(passed, changes, measured, summary, request.out if passed else request.work)
    if not passed:
        _write(request.work, pages(changes, measured, False))
        journal.record("not published", summary=summary)
        return outcome
    staging = request.work / "staging"
    inputs = next(event for event in journal.events if event["event"] == "inputs")
    with file_errors(staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        shown = changes
        made = {CHECKPOINT: trial.folder if trial else student, STUDENT: student if trial else None}
        for name, source in made.items():
            if source is None:
                continue
            final, was = str(request.out / name), str(source)
            shown = tuple(one.model_copy(update={"artifact": final}) if one.artifact == was else one for one in shown)
            model = Path(str(inputs["folder"])) if "folder" in inputs else None
            _copy_checkpoint(source, model, staging / name)
            last = next(one for one in reversed(shown) if one.artifact == final and one.accuracy)
            _write(staging / name, {"README.md": model_card(source, last, inputs, request)})
        _write(staging, pages(shown, measured, True))
        shutil.copyfile(journal.path, staging / "journal.jsonl")
        for path in staging.rglob("*"):
            if path.is_dir():
                sync_folder(path)
        hashes = hash_folder(staging)
        journal.record("publishing", files=hashes, summary=summary)
        sync_folder(staging)
        staging.rename(request.out)
        sync_folder(request.out.parent)
    finish(journal, request.out)
    return Outcome(True, shown, measured, summary, request.out)


def was_published(journal: Journal, out: Path) -> bool:
    """Whether an earlier run was stopped after the folder had been renamed into its place."""
    return out.exists() and any(event["event"] == "publishing" for event in journal.events)


def check_free(out: Path) -> None:
    """Raise FileProblem when something stands where the output folder is to appear."""
    if out.exists():
        raise FileProblem("the output folder is there already", where=str(out), hint="remove it, or give another --out")


def finish(journal: Journal, out: Path) -> Outcome:
    """Remove the work folder of what is published."""
    last = next(event for event in reversed(journal.events) if event["event"] == "publishing")
    changes: tuple[Change, ...] = ()
    measured: dict[str, Scalar] = {}
    kept = out / "report.json"
    if kept.exists():
        content = json.loads(kept.read_text(encoding="utf-8"))
        changes = tuple(Change.model_validate(one) for one in content.get("changes", ()))
    if (out / "measured.json").exists():
        measured = json.loads((out / "measured.json").read_text(encoding="utf-8"))
    shutil.rmtree(journal.folder, ignore_errors=True)
    return Outcome(True, changes, measured, str(last["summary"]), out)


def model_card(folder: Path, last: Change, inputs: Mapping[str, Any], request: Request) -> str:
    """A model card that says how a checkpoint was made and what it measured; last: the change that made it."""
    quantized = (folder / "hf_quant_config.json").is_file()
    record = quantization_record(folder) if quantized else {}
    rows = [
        f"| {one.what} | {one.metric} | {_figure(one.value)} | {_span(one.low, one.high)} | {one.samples} |"
        for one in last.accuracy
    ]
    versions = ", ".join(f"{name} {version}" for name, version in inputs["versions"].items())
    shards = [f"- `{name}` sha256 {value}" for name, value in inputs["model"].items() if name.endswith(".safetensors")]
    command = " ".join(shlex.quote(word) for word in ("advise", *request.arguments))
    lines = [
        f"# {request.out.name}",
        "",
        QUANTIZED if quantized else DISTILLED,
        "",
        "## How it was made",
        "",
        *[f"- {name} {record[name]}" for name in ("quant_algo", "kv_cache_quant_algo", "group_size") if record.get(name)],
        *[f"- {line}" for line in last.detail.splitlines()],
        *_calibrated(last.calibration),
        f"- seed {request.seed}; {versions}",
        f"- command: `{command}`",
        "- made from:",
        *[f"  {line}" for line in shards],
        *[f"- prompts: sha256 {value}" for value in inputs["prompts"].values()],
        "",
        "## What it measures",
        "",
        "On held-out prompts, against the unquantized model. The gate judges the exported files, decoded tensor by tensor.",
        "",
        "| what | metric | value | 95 % interval | tokens |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)


def _calibrated(found: Calibration | None) -> list[str]:
    if found is None:
        return []
    distance = "not known" if found.distance is None else f"{found.distance:.2f} (0 the same tokens, 1 disjoint)"
    return [
        f"- calibrated on {found.prompts} prompts of {found.source}, {found.tokens} tokens; distance from {found.production} "
        + distance
    ]


def _copy_checkpoint(source: Path, model: Path | None, target: Path) -> None:
    """The files made (linked where the file system can) and those of the model that the export does not write."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            _link(path, target / path.name)
    for name in COPIED if model is not None else ():
        own = Path(str(model)) / name
        if own.is_file() and not (target / name).exists():
            shutil.copyfile(own, target / name)
            sync_and_hash(target / name)
    if model is not None and not (target / "tokenizer.json").exists():
        causal_model.load_tokenizer(model).save_pretrained(str(target))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_and_hash(target)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    from advisor.library import write_whole

    for name, text in files.items():
        write_whole(folder / name, text)


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_figure(low)} to {_figure(high)}"
