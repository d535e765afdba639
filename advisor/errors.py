"""What can go wrong, each with the next step.

AdvisorError                 exit  what it means
├── InputError                1    something the user gave is at fault
│   ├── FileProblem           1    a file is missing, unreadable, too large or not what it should be
│   ├── UnknownName           1    a GPU, model, traffic, rule or fact that nobody has heard of
│   ├── GpuProblem            1    the GPUs of this machine cannot be read or planned for
│   ├── ModelProblem          1    a model folder or hub entry that does not describe a model
│   ├── TrafficProblem        1    a trace, a metrics text or numbers that cannot be traffic
│   ├── RuleProblem           1    a rule, overlay or policy that does not load (file, line, caret)
│   ├── PolicyProblem         1    a question that the policy does not allow: an engine, a version, a metric
│   └── NotPossible           1    a deployment that this engine, GPU or model does not allow
├── MissingExtra              1    an optional package is needed and not installed
├── GateFailed                3    applied, but a gate failed: nothing was published
└── NoPlanFits                4    no plan satisfies the limits
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AdvisorError(Exception):
    """An error the user can act on.

    what: one line, what is wrong.  where: the file, flag or value it concerns ("" when obvious).
    hint: what to do next.  exit_status: the process's exit status, as CONTRACT.md lists them.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.where:
            lines.append(f"where: {self.where}")
        if self.hint:
            lines.append(f"next:  {self.hint}")
        return _visible("\n".join(lines))


def _visible(text: str) -> str:
    """Names and paths are shown as given, but what would move a terminal's cursor or turn its text around is escaped."""
    return "".join(sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text)


class InputError(AdvisorError):
    """Something the user gave is at fault."""


class FileProblem(InputError):
    """A file is missing, unreadable, too large or not what it should be."""


class UnknownName(InputError):
    """A name nobody has heard of; the hint offers the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "", hint: str = "") -> None:
        near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
        guess = f"did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"unknown {kind}: {name!r}", where=where, hint=" ".join(part for part in (guess, hint) if part))
        self.near = tuple(near)


class GpuProblem(InputError):
    """The GPUs of this machine cannot be read, or cannot be planned for as they are."""


class ModelProblem(InputError):
    """A model folder, name or hub entry that does not describe a model."""


class TrafficProblem(InputError):
    """A trace, a metrics text or declared numbers that cannot be traffic."""


class RuleProblem(InputError):
    """A rule, an overlay, a policy or a condition that does not load."""


class PolicyProblem(InputError):
    """A question that the policy does not allow: an engine, a version, an accuracy metric."""


class NotPossible(InputError):
    """A deployment that this engine, GPU or model does not allow."""


class MissingExtra(AdvisorError):
    """An optional package is needed and not installed."""


class GateFailed(AdvisorError):
    """Something was applied and did not pass its gate; nothing was published."""

    exit_status = 3


class NoPlanFits(AdvisorError):
    """No plan satisfies the limits."""

    exit_status = 4
