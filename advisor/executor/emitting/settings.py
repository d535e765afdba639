"""Settings with the reason for each, and their YAML: a value a line, a comment that says where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from advisor.types import Plan

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_NOT_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Setting:
    """A value and why it is so: a rule's id, "plan", "engine default" or half a sentence."""

    value: Any
    why: str


Section = Mapping[str, Union[Setting, "Section"]]


def plain(section: Section) -> dict[str, Any]:
    """The values alone, as the engine reads them."""
    return {key: entry.value if isinstance(entry, Setting) else plain(entry) for key, entry in section.items()}


def annotated(section: Section) -> str:
    """YAML with a comment after each value."""
    return "\n".join(_lines(section, "")) + "\n"


def yaml_text(value: Any) -> str:
    """YAML of plain data (mappings, lists, strings, numbers, None); strings of several lines as blocks."""
    return "\n".join(_data(value, "")) + "\n"


def reasons(plan: Plan) -> dict[str, str]:
    """Deployment field -> the rule of the last step that changed it; absent: no step did."""
    return {field: step.rule for step in plan.steps for field in step.changes}


def comment(text: str) -> str:
    """Text for a comment: one line, whatever names it was made from."""
    return " ".join(_CONTROL.sub(" ", text).split())


def _lines(section: Section, indent: str) -> Iterator[str]:
    for key, entry in section.items():
        if isinstance(entry, Setting):
            yield f"{indent}{_scalar(key)}: {_inline(entry.value)}  # {comment(entry.why)}"
        else:
            yield f"{indent}{_scalar(key)}:"
            yield from _lines(entry, indent + "  ")


def _data(value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _entry(f"{indent}{_scalar(key)}:", inner, indent + "  ")
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        for inner in value:
            if isinstance(inner, Mapping | list | tuple) and inner:
                first, *rest = _data(inner, indent + "  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            else:
                yield from _entry(f"{indent}-", inner, indent + "  ")
    else:
        yield indent + _inline(value)


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from _data(value, indent)
    elif isinstance(value, str) and _block(value):
        yield f"{head} |"
        yield from (f"{indent}{line}".rstrip() for line in value.splitlines())
    else:
        yield f"{head} {_inline(value)}"


def _block(text: str) -> bool:
    """Whether a text of several lines can stand as a literal block and come back as it was."""
    return (
        "\n" in text
        and text.endswith("\n")
        and not text.endswith("\n\n")
        and not text[0].isspace()
        and not _CONTROL.search(text.replace("\n", ""))
        and all(line == line.rstrip() for line in text.split("\n"))
    )


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_inline(inner) for inner in value) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        return _CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", quoted)
    if isinstance(value, float):
        text = repr(value)
        return text if "e" not in text or "." in text else text.replace("e", ".0e")
    return json.dumps(value)
