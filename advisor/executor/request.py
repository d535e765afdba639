"""What is asked of the executor, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import Required, TypedDict

from advisor.executor.bookkeeping.spending import Limit
from advisor.executor.publishing.delivery import Shelf
from advisor.types import Change, Scalar, TrainingCost


@dataclass(frozen=True)
class Request:
    """The options of `advise apply`."""

    out: Path
    """folder to publish into; what the same inputs and versions gave there already is reused"""
    calibration: Path | None = None
    """JSONL of prompts to calibrate on"""
    production: Path | None = None
    """JSONL of production's own prompts, to judge by and to recalibrate on; None: the calibration prompts are production's"""
    training: Path | None = None
    """JSONL of texts to train on; None: the prompts that calibrate, and production's that judge nothing"""
    training_steps: int | None = None
    """steps of a training at most; None: as the rule says"""
    confirm: Callable[[str], bool] | None = None
    """asks a person; None: nobody is there to be asked"""
    resume: bool = False
    """go on with a run that was stopped; its inputs have to be the same"""
    renew: bool = False
    """go on with it whatever changed: what depends on a change is made again"""
    replace: bool = False
    """put the result in the place of an earlier one once it has passed its gate"""
    max_rounds: int = 6
    max_seconds: float | None = None
    """no round is begun after this time"""
    seed: int = 0
    prompts: int | None = None
    """prompts to calibrate on; None: as many as the rule says"""
    held_out: int = 64
    """prompts to judge by, at most; the first half of them first"""
    tokens: int = 512
    """no prompt is longer"""
    draft: Path | None = None
    """folder of a draft model whose acceptance is measured; None: the plan's own, where it is a folder"""
    command: str | None = None
    """scores a checkpoint: {checkpoint} is its folder, the last word printed the score"""
    command_seconds: float = 3600.0
    keep: tuple[str, ...] = ()
    """patterns of modules that stay at 16 bits, beside those of the plan"""
    tasks: Path | None = None
    """folder with lm-eval tasks of the user's own, for the metric task:NAME"""
    student_layers: int | None = None
    """layers of a student to distil first and to quantize then; None: the model itself is quantized"""
    student_steps: int | None = None
    """steps of its distillation; None: as many as the rule says"""
    arguments: tuple[str, ...] = ()
    """the command line that asked, for the model card"""

    version: str = ""
    """of this program, for the journal"""
    question: str = ""
    """hash of the profile, the plan, the policy and the rules"""
    limits: tuple[Limit, ...] = ()
    """the most that the run may spend, over all the processes that it takes"""
    checkpoint_bytes: float = 0.0
    """that the plan's checkpoint will take, by arithmetic"""
    shelves: tuple[Shelf, ...] = ()
    """where the result goes once it is published, and whence an equal one comes that is not here any more"""

    @property
    def work(self) -> Path:
        """The folder beside `out` in which the run works and keeps what it made."""
        return self.out.parent / f"{self.out.name}.work"


class Options(TypedDict, total=False):
    """Those fields of a Request that the caller of `advisor.apply` gives, by their names."""

    out: Required[Path]
    calibration: Path | None
    production: Path | None
    resume: bool
    renew: bool
    replace: bool
    max_rounds: int
    max_seconds: float | None
    seed: int
    prompts: int | None
    held_out: int
    tokens: int
    draft: Path | None
    training: Path | None
    training_steps: int | None
    confirm: Callable[[str], bool] | None
    command: str | None
    command_seconds: float
    keep: tuple[str, ...]
    tasks: Path | None
    student_layers: int | None
    student_steps: int | None
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Remedy:
    """What a fired rule wants done."""

    rule: str
    action: str
    """recalibrate, mixed_precision, qat, distill"""
    parameters: Mapping[str, object] = field(default_factory=dict)
    leaves: Mapping[str, Scalar] = field(default_factory=dict)
    """measured facts that say it was tried, or ruled out"""
    cost: Callable[[float], TrainingCost | None] = lambda tokens: None
    """tokens to train on -> what that costs on the profile's GPU; None: it trains nothing, or that is not known"""
    asks: bool = True
    """a person is asked before it trains"""


@dataclass(frozen=True)
class Answer:
    """What the rules say about what was measured."""

    remedies: tuple[Remedy, ...] = ()
    """of the rules that fire, in the order in which the reasoner would have them"""
    wanted: tuple[str, ...] = ()
    """measured facts that a rule asked for and nobody has measured"""
    forbidden: tuple[tuple[Remedy, str], ...] = ()
    """what fired and the policy does not allow, with its words"""


Ask = Callable[[Mapping[str, Scalar]], Answer]


@dataclass(frozen=True)
class Served:
    """What serving the result came to."""

    changes: tuple[Change, ...]
    """one for each step that only an engine carries out, and one for each way of serving that was measured"""
    facts: Mapping[str, Scalar] = field(default_factory=dict)
    passed: bool = True
    """no limit was missed that this machine can judge"""
    summary: str = ""
    """one sentence"""


Serve = Callable[[Path | None, tuple[Change, ...], Mapping[str, Scalar], bool], Served]
"""(folder of the last checkpoint, None for the model as it is; what was done; measured facts; whether the gates passed so far)
-> how it serves"""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    published: bool
    changes: tuple[Change, ...]
    measured: dict[str, Scalar]
    summary: str
    """one sentence"""
    folder: Path
    """where the report is: the output folder, or the work folder when nothing was published"""
    reused: bool = False
    """True: made by an earlier run from the same inputs and versions"""
    places: tuple[str, ...] = ()
    """where it was sent to"""


Pages = Callable[[tuple[Change, ...], Mapping[str, Scalar], bool], Mapping[str, str]]
"""(changes, measured facts, published) -> the files to write beside the checkpoint: name -> text"""


def whole_number(parameters: Mapping[str, object], name: str, default: int) -> int:
    """A whole number of a rule's parameters."""
    value = parameters.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
