"""A Profile as text: every fact with its source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from advisor.report.sanitation import sanitise
from advisor.report.units import given
from advisor.types import Profile, Value

GROUPS = ("gpu", "model", "traffic", "goal", "engine", "measured")


def render_profile(profile: Profile) -> str:
    """One line a fact: name, value, where it came from. Facts that are not known say so."""
    shown = sanitise(profile)
    lines = []
    for group in GROUPS:
        for name, value in _rows(getattr(shown, group), group):
            lines.append(f"{name:<32} {value:<28} {_source(shown.sources, name)}".rstrip())
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _rows(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Value):
        value = {inner: getattr(value, inner) for inner in type(value).model_fields}
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _rows(item, f"{name}.{inner}")
    elif isinstance(value, (tuple, list)):
        if value and all(isinstance(item, str) for item in value):
            yield from ((name, item) for item in value)
        elif name == "traffic.lengths":
            yield name, f"{len(value)} sampled pairs"
        else:
            for index, item in enumerate(value):
                yield from _rows(item, f"{name}[{index}]")
    else:
        yield name, given(value)


def _source(sources: dict[str, str], name: str) -> str:
    """Of the fact itself, or of the value it is part of."""
    while name:
        if name in sources:
            return f"[{sources[name]}]"
        name = name.rpartition(".")[0]
    return ""
