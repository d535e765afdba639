"""A YAML file of rules, read with the place of every value, so that each problem is shown where it stands.

Scalars are read by the type that their key wants, not by YAML's guesses: the traps (`on` is true, 1e9 is text, 1.10 is 1.1,
010 is 8) are problems here, with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from advisor import library
from advisor.errors import RuleProblem
from advisor.reasoner.place import Place, did_you_mean
from advisor.types import Scalar

LARGEST = 256 * 1024
_LONGEST_LINE = 2000
_MOST_BRACKETS = 2000
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d*)")
_FLOAT = re.compile(r"[+-]?\d+\.\d*([eE][+-]\d+)?|[+-]?\.\d+([eE][+-]\d+)?")
_EXPONENT = re.compile(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)")
_OCTAL = re.compile(r"[+-]?0\d+")
_TRUTHS = frozenset(("yes", "no", "on", "off", "y", "n"))
Node = Any


def _is_quoted(node: Node) -> bool:
    return getattr(node, "style", None) in ("'", '"')


class Source:
    """One file: its nodes become values, what is wrong with them is gathered in `problems`."""

    def __init__(self, path: Path, name: str, *, what: str = "rule file") -> None:
        """name, what: how the file is called in problems. An unreadable file raises FileProblem; all else is gathered."""
        self.name = name
        self.what = what
        self.problems: list[RuleProblem] = []
        self.lines = library.read_text(path, largest=LARGEST, what=what).splitlines()
        self._seen: set[int] = set()
        self.root = self._compose()

    def _compose(self) -> Node:
        text = "\n".join(self.lines) + "\n"
        # The parser recurses in C: a million brackets would end the process.
        if text.count("[") + text.count("{") > _MOST_BRACKETS or max(map(len, self.lines), default=0) > _LONGEST_LINE:
            hint = f"at most {_LONGEST_LINE} characters a line and {_MOST_BRACKETS} brackets a file"
            self.problems.append(Place(self.name, 1, 1, "").problem(f"this is too dense for a {self.what}", hint=hint))
            return None
        loader = _LOADER(text)
        try:
            return loader.get_single_node()
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = self._at(mark.line, mark.column) if mark else Place(self.name, 1, 1, "")
            what = getattr(error, "problem", None) or "not YAML"
            self.problems.append(place.problem(f"not valid YAML: {what}", hint="text with `: ` or ` #` in it needs quotes"))
            return None
        finally:
            loader.dispose()

    def _at(self, line: int, column: int) -> Place:
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.name, line + 1, column + 1, text)

    def place(self, node: Node) -> Place:
        """Where a node stands; a quoted scalar's text begins after the quote."""
        if node is None:
            return self._at(0, 0)
        mark = node.start_mark
        return self._at(mark.line, mark.column + _is_quoted(node))

    def report(self, node: Node, what: str, hint: str = "") -> None:
        """Gathers a problem at a node."""
        place = self.place(node)
        length = len(place.text)
        if node is not None and node.end_mark.line == node.start_mark.line:
            length = node.end_mark.column - (place.column - 1) - _is_quoted(node)
        self.problems.append(place.problem(what, hint=hint, length=length))

    def _first_visit(self, node: Node) -> bool:
        if id(node) in self._seen:
            self.report(node, "YAML aliases are not read", "write it out")
            return False
        self._seen.add(id(node))
        return True

    def mapping(
        self, node: Node, keys: Sequence[str], optional: Iterable[str] = (), *, what: str, ordered: bool = False
    ) -> dict[str, Node]:
        """Key -> node of a mapping that may have these keys and must have all but the optional ones."""
        found = {key.value: value for key, value in self.pairs(node, what, known=keys)}
        missing = [key for key in keys if key not in found and key not in optional]
        if missing and isinstance(node, yaml.MappingNode):
            self.report(node, f"{what} has no {missing[0]!r}", f"its keys in order: {', '.join(keys)}")
        if ordered:
            self._check_order(node, keys)
        return {key: value for key, value in found.items() if key in keys}

    def _check_order(self, node: Node, keys: Sequence[str]) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        latest = -1
        for key, _ in node.value:
            position = keys.index(key.value) if key.value in keys else latest
            if position < latest:
                self.report(key, f"the key {key.value!r} stands too late", f"the order is: {', '.join(keys)}")
                return
            latest = position

    def pairs(self, node: Node, what: str, known: Iterable[str] = ()) -> list[tuple[Node, Node]]:
        """The (key, value) nodes of a mapping, each key once; with `known`, an unknown key is a problem."""
        if not isinstance(node, yaml.MappingNode):
            self.report(node, f"{what} is a mapping of keys to values", f"its keys: {', '.join(known)}" if known else "")
            return []
        if not self._first_visit(node):
            return []
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.report(key, "a key is a word")
                return []
            if key.value in names:
                self.report(key, f"the key {key.value!r} stands here twice", "keep one of them")
            names.add(key.value)
            if known and key.value not in known:
                self._report_key(key, what, known)
        return list(node.value)

    def _report_key(self, key: Node, what: str, known: Iterable[str]) -> None:
        if not key.style and key.value.lower() in _TRUTHS | {"true", "false"}:
            self.report(key, f"YAML reads the key {key.value} as true or false", f"the keys: {', '.join(known)}")
        else:
            hint = did_you_mean(key.value, known) or f"its keys: {', '.join(known)}"
            self.report(key, f"{what} has no key {key.value!r}", hint)

    def items(self, node: Node, what: str) -> list[Node]:
        """The nodes of a list; none where there is no node."""
        if node is None or (isinstance(node, yaml.ScalarNode) and node.value == ""):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.report(node, f"{what} is a list", "begin each of its lines with `- `")
            return []
        return list(node.value) if self._first_visit(node) else []

    def text(self, node: Node, what: str) -> str:
        """A scalar as text; one that YAML would read as another type needs quotes."""
        if node is None:
            return ""
        if not isinstance(node, yaml.ScalarNode):
            self.report(node, f"{what} is text")
            return ""
        value = str(node.value).strip()
        if not value:
            self.report(node, f"{what} is empty", "say it in a sentence or two")
        elif not node.style and (_FLOAT.fullmatch(value) or _INTEGER.fullmatch(value)):
            read = repr(float(value)) if "." in value else value
            self.report(node, f"{what} is text, and YAML reads {value} as the number {read}", f'write "{value}"')
        elif not node.style and value.lower() in _TRUTHS | {"true", "false"}:
            self.report(node, f"{what} is text, and YAML reads {value} as true or false", f'write "{value}"')
        return value

    def word(self, node: Node, choices: Sequence[str], what: str) -> str:
        """One word out of a closed list; the first of them where it is none, after the problem is gathered."""
        value = node.value if isinstance(node, yaml.ScalarNode) else None
        if value in choices:
            return str(value)
        if node is not None:
            hint = (did_you_mean(value, choices) if value else "") or f"one of {', '.join(choices)}"
            self.report(node, f"{what} is never {value!r}" if value else f"{what} is one word", hint)
        return choices[0]

    def scalar(self, node: Node, what: str = "this") -> Scalar:
        """A scalar by its own look: null, true, false, a number, else text."""
        if not isinstance(node, yaml.ScalarNode):
            self.report(node, f"{what} is one value, no list and no mapping")
            return None
        value = str(node.value)
        if node.style:
            return value
        if value in ("", "null", "~"):
            return None
        if value in ("true", "false"):
            return value == "true"
        if _INTEGER.fullmatch(value):
            return int(value)
        if _FLOAT.fullmatch(value):
            return float(value)
        self._report_trap(node, value)
        return value

    def _report_trap(self, node: Node, value: str) -> None:
        exponent = _EXPONENT.fullmatch(value)
        if exponent:
            whole, fraction, sign, power = exponent.groups()
            number = f"{whole}{fraction if fraction and fraction != '.' else '.0'}e{sign or '+'}{power}"
            self.report(node, f"YAML reads {value} as text", f"write {number}")
        elif _OCTAL.fullmatch(value):
            self.report(node, f"YAML reads {value} as an octal number", "leave the leading zero out, or put it in quotes")
        elif value.lower() in _TRUTHS | {"true", "false"}:
            self.report(node, f"YAML reads {value} as true or false", f'write true, false or "{value}"')

    def number(self, node: Node, what: str) -> float:
        """A number; 0 where it is none, after the problem is gathered."""
        value = None if node is None else self.scalar(node, what)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        if isinstance(node, yaml.ScalarNode):
            self.report(node, f"{what} is a number")
        return 0

    def data(self, node: Node) -> object:
        """A node as plain data: mappings, lists and scalars."""
        if isinstance(node, yaml.MappingNode):
            return {str(key.value): self.data(value) for key, value in self.pairs(node, "this")}
        if isinstance(node, yaml.SequenceNode):
            return [self.data(item) for item in self.items(node, "this")]
        return self.scalar(node)
