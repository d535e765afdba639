"""The one place where untrusted text is made harmless to show: model names, traces, engine logs, rule overlays.

Every string of a Report passes `sanitise` before a page is made of it. What is left can't move a cursor, colour a
terminal, reorder a line (bidirectional controls) or hide in it (zero-width characters). Escaping for HTML, Markdown
and shell is the matter of the page that is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from advisor.types import Value

LONGEST = 4000
"""characters of one string that are shown"""

# ECMA-48 sequences: CSI, the strings (OSC, DCS, SOS, PM, APC) with their terminator, and two-character escapes;
# their C1 single-character forms too. Removing them whole leaves no "[31m" behind.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_SPACES = re.compile(r" {2,}")
_ASCII = str.maketrans(
    {
        "–": "-", "—": "-", "−": "-", "…": "~", "×": "x", "≤": "<=", "≥": ">=", "±": "+-", "→": "->", "·": "-", "‑": "-",
        "“": '"', "”": '"', "‘": "'", "’": "'", "µ": "u", "≈": "~", "²": "2",
    }
)  # fmt: skip

Nested = TypeVar("Nested")


def clean(text: str) -> str:
    """`text` as one line of printable characters, at most LONGEST of them."""
    if not text.isprintable():
        text = _ESCAPE_SEQUENCE.sub("", text)
        text = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
        text = _SPACES.sub(" ", text).strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def to_ascii(text: str) -> str:
    """`text` in ASCII: punctuation by its nearest, anything else by a question mark."""
    return text if text.isascii() else text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def sanitise(value: Nested, change: Callable[[str], str] = clean) -> Nested:
    """`value` with `change` applied to every string in it, keys of mappings too; what needs no change is the same object."""
    changed: Any = value
    if isinstance(value, str):
        changed = change(value)
    elif isinstance(value, Value):
        fields = {name: new for name, old in value if (new := sanitise(old, change)) is not old}
        changed = value.model_copy(update=fields) if fields else value
    elif isinstance(value, tuple | list):
        items = type(value)(sanitise(item, change) for item in value)
        changed = items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    elif isinstance(value, dict):
        entries: dict[Any, Any] = {}
        for key, item in value.items():
            name = sanitise(key, change)
            while name in entries:
                name = f"{name}'"
            entries[name] = sanitise(item, change)
        pairs = zip(value.items(), entries.items(), strict=True)
        same = all(key is name and item is new for (key, item), (name, new) in pairs)
        changed = value if same else entries
    return changed  # type: ignore[no-any-return]
