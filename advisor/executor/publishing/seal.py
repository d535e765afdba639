"""The seal of an output folder: published.json, written last. It says what the folder holds and what it was made from.

A folder or a place without it is half-written. Equal inputs (by the hash of their content and of the versions) are known by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from advisor.errors import FileProblem
from advisor.executor.bookkeeping.journal import digest, hash_file, hash_folder
from advisor.library import read_text, write_whole
from advisor.types import Value

SEAL = "published.json"


class Sealed(Value):
    """One file."""

    sha256: str
    size: int
    """bytes"""


class Seal(Value):
    """What a published folder holds."""

    seal_version: Literal[1] = 1
    made: str
    """when, UTC, ISO 8601"""
    summary: str
    """one sentence: what was made and that it passed"""
    inputs: dict[str, str]
    """part of the inputs -> hash of its content: model, prompts, question, options, versions"""
    files: dict[str, Sealed]
    """path within the folder -> file; the seal itself is not among them"""

    @property
    def key(self) -> str:
        """Hash of everything it was made from."""
        return digest(self.inputs)

    def differing(self, inputs: Mapping[str, str]) -> tuple[str, ...]:
        """The parts of the inputs that are others now."""
        return tuple(name for name in sorted({*self.inputs, *inputs}) if self.inputs.get(name) != inputs.get(name))

    def broken(self, folder: Path, *, content: bool) -> tuple[str, ...]:
        """The files that are not there as sealed: by size, and with `content` by SHA-256."""
        return tuple(name for name, file in self.files.items() if not _is(folder / name, file, content))


def seal_folder(folder: Path, inputs: Mapping[str, str], summary: str) -> Seal:
    """Seal everything in a folder. Raises FileProblem."""
    hashes = hash_folder(folder)
    files = {name: Sealed(sha256=value, size=(folder / name).stat().st_size) for name, value in hashes.items() if name != SEAL}
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    seal = Seal(made=made, summary=summary, inputs=dict(inputs), files=files)
    write_whole(folder / SEAL, seal_text(seal))
    return seal


def seal_text(seal: Seal) -> str:
    """As it is written."""
    return seal.model_dump_json(indent=1) + "\n"


def read_seal(folder: Path) -> Seal | None:
    """The seal of a folder; None: it has none. Raises FileProblem for one that is damaged."""
    path = folder / SEAL
    return parse_seal(read_text(path, what="seal"), str(path)) if path.is_file() else None


def parse_seal(text: str, where: str) -> Seal:
    """A seal from its text. Raises FileProblem."""
    try:
        return Seal.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        raise FileProblem("this is no seal of `advise apply`", where=where, hint="publish the folder again") from None


def _is(path: Path, file: Sealed, content: bool) -> bool:
    try:
        return path.stat().st_size == file.size and (not content or hash_file(path) == file.sha256)
    except OSError:
        return False
