"""The output folder: put together beside its place, then renamed into it, so that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.errors import FileProblem
from advisor.executor.bookkeeping.journal import Journal, digest, file_errors, sync_and_hash, sync_folder
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.emitting.site import CHECKPOINT
from advisor.executor.judging.trial import Trial
from advisor.executor.publishing.delivery import fetch
from advisor.executor.publishing.seal import SEAL, read_seal, seal_folder
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.checkpoint import quantization_record
from advisor.executor.request import Outcome, Pages, Request
from advisor.types import Calibration, Change, Scalar

if TYPE_CHECKING:
    from advisor.executor.material import Fingerprint

STUDENT = "student"
"""folder of a student at 16 bits, beside the checkpoint that was quantized from it"""
QUANTIZED = """Made by `advise apply` with NVIDIA ModelOpt. transformers does not read this checkpoint: it loads it without
an error and computes nonsense. Serve it with an engine that reads ModelOpt's unified checkpoints."""
DISTILLED = "Made by `advise apply`: an ordinary 16-bit checkpoint with fewer layers than its teacher, distilled from it."
JOURNAL = "journal.jsonl"
WORDS = {
    "model": "the model's files", "prompts": "the prompts", "versions": "versions of this program or of what it works with",
    "question": "the plan, its profile, policy or rules", "options": "the options (--seed, the numbers of prompts, …)",
}  # fmt: skip
"""part of the inputs -> what it is"""


def publish(
    journal: Journal,
    request: Request,
    made_from: Fingerprint,
    trial: Trial | None,
    changes: tuple[Change, ...],
    measured: dict[str, Scalar],
    pages: Pages,
    *,
    passed: bool,
    summary: str,
    student: Path | None = None,
) -> Outcome:
    """Write everything, seal it and rename it into place; when the gate did not pass, the pages go into the work folder alone.

    student: a 16-bit model that was distilled: the checkpoint where no trial quantized it, else beside the checkpoint.

    Raises FileProblem; then the output folder is as it was and the run can be resumed.
    """
    outcome = Outcome(passed, changes, measured, summary, request.out if passed else request.work)
    if not passed:
        _write(request.work, pages(changes, measured, False))
        journal.record("not published", summary=summary)
        return outcome
    staging = request.work / "staging"
    inputs = next(event for event in reversed(journal.events) if event["event"] == "inputs")
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
        shutil.copyfile(journal.path, staging / JOURNAL)
        for path in staging.rglob("*"):
            if path.is_dir():
                sync_folder(path)
        seal = seal_folder(staging, made_from.inputs, summary)
        journal.record("publishing", seal=digest(seal.model_dump()), summary=summary)
        sync_folder(staging)
        _put_in_place(staging, request.out)
    return finish(journal, request.out)


def was_published(journal: Journal, out: Path) -> bool:
    """Whether an earlier run was stopped after the folder had come into its place."""
    last = next((event for event in reversed(journal.events) if event["event"] == "publishing"), None)
    if last is None:
        return False
    seal = read_seal(out)
    return seal is not None and digest(seal.model_dump()) == last["seal"]


def find_published(journal: Journal, request: Request, made_from: Fingerprint, progress: Progress) -> Outcome | None:
    """What stands in the output folder, where it was made from the same inputs and versions; None: there is nothing.

    With `replace`, what was made from others is left to be replaced, and its stages are taken over: those that depend on
    nothing that changed are found again. Raises FileProblem for anything else that stands there.
    """
    out = request.out
    if not out.exists():
        return _recall(journal, request, made_from, progress)
    seal = read_seal(out) if out.is_dir() else None
    if seal is None:
        raise FileProblem("the output folder is there already", where=str(out), hint="remove it, or give another --out")
    with file_errors(out):
        strange = sorted({str(one.relative_to(out)) for one in out.rglob("*") if one.is_file()} - {SEAL, *seal.files})
    broken = seal.broken(out, content=True)
    others = seal.differing(made_from.inputs)
    if not others and not broken:
        progress.say("reused", f"the same inputs and versions gave {out} at {seal.made}: it is reused", key=seal.key[:16])
        if not journal.events:
            shutil.rmtree(journal.folder, ignore_errors=True)
        return replace(_outcome(out, seal.summary), reused=True)
    if broken or strange:
        raise FileProblem(
            f"the output folder is no longer as it was published: {(*broken, *strange)[0]}",
            where=str(out),
            hint="remove it, or give another --out",
        )
    said = ", ".join(WORDS[name] for name in others)
    if not request.replace:
        raise FileProblem(
            f"the output folder holds what was made from other inputs: {said}",
            where=str(out),
            hint="give another --out, or put the new result in its place with --replace",
        )
    progress.say("changed", f"{out} was made from other inputs ({said}): what depends on them is made again", changed=others)
    _take_over(journal, out)
    return None


def _recall(journal: Journal, request: Request, made_from: Fingerprint, progress: Progress) -> Outcome | None:
    """An equal result that is published at a place and no longer here, brought back; None: there is none."""
    for shelf in request.shelves:
        seal = shelf.seal()
        if seal is None or seal.differing(made_from.inputs):
            continue
        progress.say(
            "reused", f"the same inputs and versions gave {shelf.place} at {seal.made}: it is brought here", key=seal.key[:16]
        )
        staging = journal.folder / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        broken = fetch(shelf, staging, keep=True)
        if broken:
            raise FileProblem(
                f"what is published is damaged: {broken[0]}", where=shelf.place, hint="remove it, or give another place"
            )
        _put_in_place(staging, request.out)
        if not journal.events:
            shutil.rmtree(journal.folder, ignore_errors=True)
        return replace(_outcome(request.out, seal.summary), reused=True)
    return None


def _take_over(journal: Journal, out: Path) -> None:
    """The finished stages of what is published, with the files of its last round: the journal finds what still holds."""
    if journal.events or not (out / JOURNAL).is_file():
        return
    with file_errors(out):
        events = [json.loads(line) for line in (out / JOURNAL).read_text(encoding="utf-8").splitlines()]
        finished = [event for event in events if event["event"] == "finished"]
        for event in finished:
            for folder in (CHECKPOINT, STUDENT):
                here = {name: out / folder / Path(name).name for name in event["files"]}
                if not all(path.is_file() for path in here.values()):
                    continue
                for name, path in here.items():
                    target = journal.folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)
                    _link(path, target)
        for event in finished:
            journal.record("finished", **{name: value for name, value in event.items() if name not in ("event", "at")})


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename a folder into its place; one that stands there is exchanged with it, in one step where the system can."""
    if not out.exists():
        staging.rename(out)
    elif not _exchange(staging, out):
        aside = staging.with_name("replaced")
        out.rename(aside)
        staging.rename(out)
    sync_folder(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Whether two folders have changed places in one step (Linux 3.15 and later, glibc 2.28; most file systems)."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def finish(journal: Journal, out: Path) -> Outcome:
    """Remove the work folder of what is published."""
    last = next(event for event in reversed(journal.events) if event["event"] == "publishing")
    made = _outcome(out, str(last["summary"]))
    shutil.rmtree(journal.folder, ignore_errors=True)
    return made


def _outcome(out: Path, summary: str) -> Outcome:
    """What an output folder says of itself."""
    with file_errors(out):
        content = json.loads((out / "report.json").read_text(encoding="utf-8"))
        measured = json.loads((out / "measured.json").read_text(encoding="utf-8"))
    changes = tuple(Change.model_validate(one) for one in content.get("changes", ()))
    return Outcome(True, changes, measured, summary, out)


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
    for path in causal_model.copy_beside(model, target) if model is not None else ():
        sync_and_hash(path)
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
