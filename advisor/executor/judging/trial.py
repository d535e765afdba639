"""One trial: a scheme applied, exported, read back and measured, each part a stage of the journal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from advisor.errors import NotPossible
from advisor.executor.bookkeeping.journal import Journal, digest, file_errors, hash_folder
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.judging import evaluation, pace, tasks
from advisor.executor.judging.evaluation import Block
from advisor.executor.judging.tasks import Scores
from advisor.executor.learning.training import Trained, cut_short, read_trained
from advisor.executor.quantizing import causal_model, checkpoint, quantization
from advisor.executor.quantizing.quantization import Scheme, Sensitivities
from advisor.types import LayerSensitivity

SELECTION = 8
"""calibration prompts by which strengths and bit widths are chosen; never those of the gate"""
Sequences = tuple[tuple[int, ...], ...]
Budget = Callable[[Sequence[Block]], bool]


@dataclass(frozen=True)
class Trial:
    """What a trial left."""

    scheme: Scheme
    folder: Path
    """the exported checkpoint"""
    in_memory: tuple[Block, ...]
    """the simulated model before its export, on the first half of the held-out prompts"""
    seconds: dict[str, float]
    peak_gib: float
    size_mb: float
    trained: Trained | None = None
    """what a training between calibration and export gave"""


@dataclass(frozen=True)
class Lesson:
    """A training of the quantized model before its export."""

    inputs: dict[str, Any]
    """what it depends on, as plain data"""
    teach: Callable[[Any, str], Trained]
    """(the quantized model, the journal's name for it) -> what it gave; the model is trained in place"""
    seconds_left: Callable[[], float | None]
    """that a training that begins, or goes on, now may take; None: as long as it likes"""


class Bench:
    """The model, the original's logits and the journal: what every trial of a run shares."""

    def __init__(
        self, model: Path, journal: Journal, progress: Progress, seed: int, *, original: Path | None = None, mark: str = ""
    ) -> None:
        """model: what is quantized. original: what it is compared with, where that is another. mark: says which model, for
        the journal's keys; "" for the run's own."""
        self.model = model
        self.original_model = original or model
        self.mark = {"model": mark} if mark else {}
        self.journal = journal
        self.progress = progress
        self.seed = seed

    def original(self, sequences: Sequences) -> None:
        """Keep the unquantized model's logits for the sequences; those that are there already are not computed again.

        Called by what compares with them, so that a comparison that is kept needs none.
        """
        missing = [one for one in sequences if self.journal.find(*_original(one)) is None]
        if not missing:
            return
        model = self.fresh(self.original_model)
        tick = self.progress.track("the unquantized model", len(missing))
        for done, sequence in enumerate(missing, 1):
            path = self._logits(sequence)

            def make(sequence: tuple[int, ...] = sequence, path: Path = path) -> tuple[dict[str, Any], tuple[Path, ...]]:
                with file_errors(path):
                    evaluation.keep_logits(model, sequence, path)
                return {"tokens": len(sequence)}, (path,)

            with memory_errors():
                self.journal.do(*_original(sequence), make)
            tick(done)

    def run(
        self, name: str, scheme: Scheme, calibration: Sequences, held_out: Sequences, lesson: Lesson | None = None
    ) -> Trial:
        """Quantize with a scheme, train where there is a lesson, measure in memory, export. A finished trial is taken from the
        journal."""
        folder = self.journal.folder / name / "checkpoint"

        def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
            self.original(held_out)
            model, began = self._quantized(scheme, calibration, name)
            seconds = {"quantize": time.monotonic() - began}
            began = time.monotonic()
            trained = lesson.teach(model, f"{name}/training") if lesson else None
            if trained:
                seconds["train"] = time.monotonic() - began
                began = time.monotonic()
            blocks = self.compare(model, held_out, f"{name}: in memory")
            seconds["measure"] = time.monotonic() - began
            partial = folder.with_name("checkpoint.partial")
            began = time.monotonic()
            with file_errors(folder):
                shutil.rmtree(partial, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
                partial.mkdir(parents=True)
                quantization.export(model, partial)
                partial.rename(folder)
                files = tuple(path for path in sorted(folder.rglob("*")) if path.is_file())
            seconds["export"] = time.monotonic() - began
            value = {
                "blocks": [block.plain() for block in blocks],
                "parts": {part: round(took, 2) for part, took in seconds.items()},
                "peak_gib": round(causal_model.peak_gib(), 2),
                "size_mb": round(checkpoint.size_mb(folder), 1),
                "trained": asdict(trained) if trained else None,
            }
            return value, files

        inputs = {"scheme": scheme.plain(), "calibration": digest(calibration), "held_out": digest(held_out), "seed": self.seed}
        inputs |= self.mark | ({"lesson": lesson.inputs} if lesson else {})
        with memory_errors():
            value, was_there = self.journal.do(
                f"{name}/quantize", inputs, make,
                suffices=lambda value: lesson is None or not cut_short(value["trained"], lesson.seconds_left()),
            )  # fmt: skip
        if was_there:
            self.progress.say("kept", f"{name}: {scheme.name} was made already, its files are as they were")
        return Trial(
            scheme=scheme,
            folder=folder,
            in_memory=tuple(Block(**block) for block in value["blocks"]),
            seconds=value["parts"],
            peak_gib=value["peak_gib"],
            size_mb=value["size_mb"],
            trained=read_trained(value["trained"]) if value.get("trained") else None,
        )

    def measure(self, name: str, trial: Trial, held_out: Sequences) -> tuple[Block, ...]:
        """The exported files, decoded by our own reader, against the unquantized model on the held-out prompts."""

        def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
            self.original(held_out)
            model = checkpoint.load_exported(self.fresh(whole=True), trial.folder)
            blocks = self.compare(model, held_out, f"{name}: the exported files")
            return {"blocks": [block.plain() for block in blocks]}, ()

        with file_errors(trial.folder):
            files = {path.name: path.stat().st_size for path in sorted(trial.folder.glob("*.safetensors"))}
        inputs = {
            "files": files,
            "scheme": trial.scheme.plain(),
            "trial": self.journal.events_key(f"{name}/quantize"),
            "held_out": digest(held_out),
        }
        with memory_errors():
            value, _ = self.journal.do(f"{name}/measure-{len(held_out)}", inputs, make)
        return tuple(Block(**block) for block in value["blocks"])

    def score(self, name: str, task: str, folder: Path | None, trial: Trial | None, plain: Path) -> Scores:
        """What a trial's exported files score on a task of lm-eval; without a trial, the 16-bit model in the folder `plain`."""

        def make() -> dict[str, Any]:
            model = self.fresh(plain) if trial is None else checkpoint.load_exported(self.fresh(whole=True), trial.folder)
            self.progress.say("task", f"{name}: {'the unquantized model' if trial is None else 'the exported files'} on {task}")
            return tasks.score(model, causal_model.load_tokenizer(self.model), task, folder).plain()

        inputs = {"task": task, "own": hash_folder(folder) if folder else {}, "seed": self.seed}
        if trial is None and plain == self.original_model:
            return Scores(**self.keep("original/task", inputs, make))
        if trial is None:
            return Scores(**self.keep(f"{name}/task", inputs | self.mark, make))
        return Scores(**self.keep(f"{name}/task", inputs | {"trial": self.journal.events_key(f"{name}/quantize")}, make))

    def keep(self, stage: str, inputs: dict[str, Any], make: Callable[[], Any]) -> Any:
        """What `make` gives (plain data), computed once for the same inputs."""
        with memory_errors():
            value, _ = self.journal.do(stage, inputs, lambda: ({"kept": make()}, ()))
        return value["kept"]

    def compare_plain(self, name: str, folder: Path, held_out: Sequences, key: str | None) -> tuple[Block, ...]:
        """A 16-bit model against the original on the held-out prompts. key: what its files came from."""

        def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
            return {"blocks": [block.plain() for block in self.compare(self.fresh(folder), held_out, name)]}, ()

        inputs = {"made": key, "held_out": digest(held_out)}
        with memory_errors():
            value, _ = self.journal.do(f"{name}/measure-{len(held_out)}", inputs, make)
        return tuple(Block(**block) for block in value["blocks"])

    def choose_alpha(self, name: str, scheme: Scheme, calibration: Sequences, alphas: Sequence[float]) -> Scheme:
        """SmoothQuant's strength: the one that is least off on some of the calibration prompts."""
        chosen = calibration[:SELECTION]
        tried: dict[float, float] = {}
        for alpha in alphas:
            made = replace(scheme, alpha=alpha)
            blocks = self._select(f"{name}/alpha-{alpha:g}", made, calibration, chosen)
            tried[alpha] = sum(block.divergence for block in blocks) / sum(block.tokens for block in blocks)
            self.progress.say("alpha", f"{name}: alpha {alpha:g} is KL {tried[alpha]:.4f} off", alpha=alpha, kl=tried[alpha])
        return replace(scheme, alpha=min(tried, key=lambda alpha: tried[alpha]))

    def sensitivities(self, name: str, scheme: Scheme, calibration: Sequences, *, bits: float, with_fp8: bool) -> Sensitivities:
        """Scores of the layers, and who stays wide at so many effective bits; scored once for all widths."""
        some = calibration[:SELECTION]
        inputs = {"scheme": scheme.plain(), "some": digest(some), "bits": bits, "fp8": with_fp8, "seed": self.seed} | self.mark
        key = digest({**inputs, "bits": None})[:12]
        state = self.journal.folder / "search" / f"{key}.pth"

        def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
            if self.journal.find("search", {"key": key}) is None:
                state.unlink(missing_ok=True)
            tick = self.progress.track(f"{name}: sensitivity of the layers at {bits:g} bits", 3 * len(some))
            found = quantization.search_layers(
                self.fresh(), scheme, some, bits=bits, with_fp8=with_fp8, checkpoint=state, progress=tick
            )
            self.journal.do("search", {"key": key}, lambda: ({}, (state,) if state.exists() else ()))
            layers = [layer.model_dump() for layer in found.layers]
            return {
                "layers": layers,
                "share": found.share,
                "wide": found.wide,
                "wide_fp8": found.wide_fp8,
                "bits": found.bits,
                "left": found.left,
            }, ()

        with memory_errors():
            value, _ = self.journal.do(f"{name}/sensitivity-{bits:g}", inputs, make)
        return Sensitivities(
            layers=tuple(LayerSensitivity(**layer) for layer in value["layers"]),
            share=value["share"],
            wide=tuple(value["wide"]),
            wide_fp8=tuple(value["wide_fp8"]),
            bits=value["bits"],
            left=value["left"],
        )

    def suffices(self, name: str, scheme: Scheme, calibration: Sequences, within: Budget) -> bool:
        """Whether a scheme keeps the budget on some of the calibration prompts, in memory: a preselection, not the gate."""
        chosen = calibration[:SELECTION]
        return within(self._select(name, scheme, calibration, chosen))

    def _select(self, name: str, scheme: Scheme, calibration: Sequences, chosen: Sequences) -> tuple[Block, ...]:
        def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
            self.original(chosen)
            model, _ = self._quantized(scheme, calibration, name)
            return {"blocks": [block.plain() for block in self.compare(model, chosen, name)]}, ()

        inputs = {"scheme": scheme.plain(), "calibration": digest(calibration), "seed": self.seed} | self.mark
        with memory_errors():
            value, _ = self.journal.do(name, inputs, make)
        return tuple(Block(**block) for block in value["blocks"])

    def _quantized(self, scheme: Scheme, calibration: Sequences, name: str) -> tuple[Any, float]:
        model = self.fresh()
        began = time.monotonic()
        tick = self.progress.track(f"{name}: calibrating {scheme.name}", len(calibration))
        quantization.quantize(model, scheme, calibration, tick)
        return model, began

    def forward_seconds(self, sequence: tuple[int, ...]) -> float:
        """Seconds a token that the unquantized model takes to read a sequence here."""
        with memory_errors():
            return pace.forward_seconds(self.fresh(), sequence)

    def compare(self, model: Any, sequences: Sequences, label: str) -> list[Block]:
        """A model against the unquantized one, whose logits for the sequences are kept already."""
        tick = self.progress.track(label, len(sequences))
        found: list[Block] = []
        for done, sequence in enumerate(sequences, 1):
            found += evaluation.compare(model, sequence, self._logits(sequence))
            tick(done)
        return found

    def fresh(self, folder: Path | None = None, *, whole: bool = False) -> Any:
        """A model as its files say, the run's own unless another is named, after seeding."""
        causal_model.set_seed(self.seed)
        return causal_model.load_model(folder or self.model, whole=whole)

    def _logits(self, sequence: tuple[int, ...]) -> Path:
        return self.journal.folder / "original" / f"{digest(sequence)[:16]}.safetensors"


class memory_errors:  # noqa: N801 (reads as a function)
    """Turn running out of memory into an error the user can act on."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and causal_model.is_out_of_memory(error):
            raise NotPossible(
                "memory ran out",
                where=f"the process had reached {causal_model.peak_gib():.1f} GiB",
                hint="free memory, or use shorter prompts (--prompt-tokens), and go on with --resume: finished work is kept",
            ) from None


def _original(sequence: tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    key = digest(sequence)[:16]
    return f"original/{key}", {"sequence": key}
