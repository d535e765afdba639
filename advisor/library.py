"""Where rules/ and profiles/ are, in a checkout and in a wheel, and how their files are read and written."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from advisor.errors import FileProblem

PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "shipped"
ROOT = SHIPPED if SHIPPED.is_dir() else PACKAGE.parent
RULES = ROOT / "rules"
PROFILES = ROOT / "profiles"
LARGEST_TEXT = 32 * 2**20
DEEPEST = 100  # the C parser recurses and would take the process with it
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path, *, largest: int = LARGEST_TEXT, what: str = "file") -> str:
    """The text of a file of at most `largest` bytes. Raises FileProblem."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise FileProblem(f"this {what} is not a regular file", where=str(path), hint="give the path of a file")
        if size > largest:
            raise FileProblem(
                f"this {what} has {size / 2**20:,.0f} MiB, more than the {largest / 2**20:,.0f} MiB that are read",
                where=str(path),
                hint=f"check that it is the {what} you meant",
            )
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileProblem(
            f"this {what} is not UTF-8 text", where=f"{path}, byte {error.start}", hint="save it as UTF-8"
        ) from None
    except OSError as error:
        raise FileProblem(f"this {what} cannot be read: {error.strerror}", where=str(path), hint="check the path") from None


def parse_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text; only plain data, aliases refused (they can grow without bound). Raises FileProblem."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            mark = event.start_mark
            line = f"{where}:{mark.line + 1}" if mark is not None else where
            if isinstance(event, yaml.AliasEvent):
                raise FileProblem("YAML aliases are not read", where=line, hint="write it out")
            if depth > DEEPEST:
                raise FileProblem(f"YAML nested deeper than {DEEPEST} levels is not read", where=line, hint="write it flatter")
        return yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise FileProblem(f"not valid YAML: {problem}", where=f"{where}{line}", hint="mend that line") from None


@cache
def profile(kind: str, name: str) -> Any | None:
    """profiles/<kind>/<name>.yaml as plain data, or None when there is no such file. Trusted: not to be changed by callers."""
    path = PROFILES / kind / f"{name}.yaml"
    if not path.is_file():
        return None
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)


@cache
def profile_names(kind: str) -> tuple[str, ...]:
    """The names in profiles/<kind>, sorted; those that start with "_" are not profiles."""
    return tuple(sorted(p.stem for p in (PROFILES / kind).glob("*.yaml") if not p.stem.startswith("_")))


def fingerprint(folder: Path) -> str:
    """The first 12 hex digits of SHA-256 over the names and contents of a folder's YAML files."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.yaml")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename. A link stays and what it leads to is
    written; into a device or a pipe the text goes as it is. Raises FileProblem."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # as the user's umask has it: others read it
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise
    except OSError as error:
        raise FileProblem(
            f"cannot write: {error.strerror}", where=str(path), hint="check the folder and the free space"
        ) from None
