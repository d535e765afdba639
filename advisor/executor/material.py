"""What a run works on: the model's files, the prompts and their split, with the hashes that say they are still the same."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from advisor.errors import ModelProblem
from advisor.executor.bookkeeping.journal import Journal, digest, file_errors, hash_file, hash_folder
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.preflight import needs_prompts, trace_of
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.calibration import Split, read_prompts, sample_trace, split_prompts
from advisor.executor.quantizing.quantization import linear_inputs
from advisor.executor.request import Request
from advisor.types import Plan, Profile

PROMPTS = 512
"""prompts to calibrate on where neither the rule nor the user says"""
APART = (
    "out", "resume", "renew", "replace", "max_seconds", "command_seconds", "arguments", "limits", "checkpoint_bytes", "shelves",
    "calibration", "production", "training", "confirm", "draft", "tasks", "question", "version",
)  # fmt: skip
"""fields of a request that do not change its result, or that count by their content and not their name"""


@dataclass(frozen=True)
class Fingerprint:
    """What a run is made from, by the hashes of content and the versions of what does the work."""

    folder: Path
    hashes: dict[str, str]
    """file of the model -> SHA-256"""
    stats: dict[str, tuple[int, int]]
    """file -> (bytes, modification time) when it was hashed"""
    prompts: dict[str, str]
    """file of prompts -> SHA-256"""
    versions: dict[str, str]
    inputs: dict[str, str]
    """part -> hash, as the seal keeps it: equal parts, equal result"""

    def check_unchanged(self) -> None:
        """Raise ModelProblem when a file of the model is no longer what it was when the run began."""
        for name, known in self.stats.items():
            path = self.folder / name
            with file_errors(path):
                if _stat(path) != known and hash_file(path) != self.hashes[name]:
                    raise _changed(path)


@dataclass(frozen=True)
class Material:
    """The prompts of a run."""

    split: Split | None = None
    """None: nothing is to be quantized"""
    lengths: tuple[int, ...] = ()
    """input lengths of production, tokens"""


def take_fingerprint(request: Request, profile: Profile, folder: Path) -> Fingerprint:
    """Hash the model's files, the prompts, the draft and the tasks. Raises FileProblem."""
    hashes = hash_folder(folder)
    stats = {name: _stat(folder / name) for name in hashes}
    given = (request.calibration, request.production, request.training, trace_of(profile))
    prompts = {str(path): hash_file(path) for path in given if path and path.is_file()}
    versions = {"inference-advisor": request.version, **causal_model.versions()}
    beside = [path and hash_folder(path) for path in (request.draft, request.tasks)]
    others = {one.name: str(getattr(request, one.name)) for one in fields(request) if one.name not in APART}
    inputs = {
        "model": digest(hashes),
        "prompts": digest([path and prompts.get(str(path)) for path in given]),
        "question": request.question,
        "options": digest([others, beside]),
        "versions": digest(versions),
    }
    return Fingerprint(folder, hashes, stats, prompts, versions, inputs)


def gather_material(
    request: Request, profile: Profile, plan: Plan, of: Fingerprint, journal: Journal, prompts: int | None, progress: Progress
) -> Material:
    """Read and split. prompts: how many to calibrate on, as the rule says. The journal notes what the run is made from once all
    of it could be read: a mistyped file begins no run.

    Raises ModelProblem when the model or the prompts changed since the run that is resumed began, FileProblem and InputError
    for prompts that are none, NotPossible for want of memory.
    """
    _check_inputs(journal, request, of)
    made = _read(request, profile, plan, of, journal, prompts, progress)
    _note_inputs(journal, request, of)
    return made


def _read(
    request: Request, profile: Profile, plan: Plan, of: Fingerprint, journal: Journal, prompts: int | None, progress: Progress
) -> Material:
    if not needs_prompts(request, plan.deployment, profile):
        return Material()
    folder, trace = of.folder, trace_of(profile)
    lengths = tuple(pair[0] for pair in profile.traffic.lengths) or (round(profile.traffic.isl.mean),)
    split = _split(request, folder, request.prompts or prompts or PROMPTS, lengths, trace)
    kind = "awq" if plan.deployment.weights in ("int4_awq", "w4a8_awq", "int4_gptq") else "max"
    kind = "qad" if request.student_layers else kind
    longest = max(len(each) for each in (*split.calibration, *split.evaluation))
    gptq = plan.deployment.weights == "int4_gptq"
    widths = linear_inputs(causal_model.load_skeleton(folder)).values() if gptq else ()
    vocab, judged = profile.model.vocab, sum(map(len, split.evaluation))
    need = causal_model.check_memory(folder, kind, vocab=vocab, tokens=longest, widths=widths)
    causal_model.check_disk(folder, journal.folder, vocab=vocab, tokens=judged)
    progress.say(
        "prompts",
        f"{split.read} prompts read, {split.duplicates} doubles and {split.short} short ones dropped: "
        f"{len(split.calibration)} calibrate, {len(split.evaluation)} judge, {len(split.reserve)} in reserve; "
        f"about {need:.1f} GiB of memory needed",
        calibration=len(split.calibration),
        evaluation=len(split.evaluation),
        reserve=len(split.reserve),
        distance=split.distance,
    )
    return Material(split, lengths)


def _split(request: Request, folder: Path, prompts: int, lengths: tuple[int, ...], trace: Path | None) -> Split:
    """The prompts given, or those of the trace; production's are its sample, else the trace's, else the prompts given."""
    tokenizer = causal_model.load_tokenizer(folder)

    def tokenize(text: str) -> list[int]:
        return list(tokenizer(text, truncation=True, max_length=request.tokens)["input_ids"])

    def read(path: Path) -> tuple[str, ...]:
        return read_prompts(path, causal_model.chat_renderer(tokenizer, str(path)))

    traced = sample_trace(trace, causal_model.chat_renderer(tokenizer, str(trace)), seed=request.seed) if trace else ()
    texts = read(request.calibration) if request.calibration else traced
    own = read(request.production) if request.production else traced if request.calibration and traced else None
    split = split_prompts(
        texts,
        own,
        tokenize,
        training=read(request.training) if request.training is not None else (),
        prompts=prompts,
        held_out=request.held_out,
        tokens=request.tokens,
        lengths=lengths,
        seed=request.seed,
    )
    source = request.calibration.name if request.calibration else f"the trace {trace.name}" if trace else ""
    production = "the prompts that are not calibrated on"
    if own is not None:
        production = request.production.name if request.production else f"the trace {trace.name}" if trace else ""
    elif trace and not traced:
        production += f" (the trace {trace.name} has lengths and no texts)"
    return replace(split, source=source, production=production)


def _began(journal: Journal) -> dict[str, Any] | None:
    return next((event for event in reversed(journal.events) if event["event"] == "inputs"), None)


def _check_inputs(journal: Journal, request: Request, of: Fingerprint) -> None:
    """Hold the inputs against those that the journal began with; with `renew` only what depends on a change is done again."""
    journal.base = digest([of.inputs["model"], of.inputs["versions"]])
    began = _began(journal)
    if began is not None and not request.renew:
        changed = sorted(name for name in {*began["model"], *of.hashes} if began["model"].get(name) != of.hashes.get(name))
        if changed:
            raise _changed(of.folder / changed[0])
        if digest(sorted(began["prompts"].values())) != digest(sorted(of.prompts.values())) or began["seed"] != request.seed:
            raise ModelProblem(
                "the prompts or the seed are not those that this run began with",
                where=str(journal.folder),
                hint="give the same ones, or go on with --auto: what depends on them is made again",
            )


def _note_inputs(journal: Journal, request: Request, of: Fingerprint) -> None:
    began = _began(journal)
    noted = {
        "folder": str(of.folder.resolve()),
        "model": of.hashes,
        "prompts": of.prompts,
        "seed": request.seed,
        "versions": of.versions,
        "command": list(request.arguments),
    }
    if began is None or {name: began.get(name) for name in noted} != noted:
        journal.record("inputs", **noted)


def _changed(path: Path) -> ModelProblem:
    return ModelProblem(
        "the model changed since this run began",
        where=str(path),
        hint="put the file back and go on with --resume, or begin anew: --auto, or remove the work folder",
    )


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
