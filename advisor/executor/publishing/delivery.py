"""A published folder sent to a place beyond this machine, and read back from there: whole, or plainly not.

    hf://org/name             a repository of a hub (huggingface_hub), one commit: all of it or nothing
    hf://org/name@branch
    file:///folder            a folder, put together beside its place and renamed into it
    s3://bucket/folder        any other scheme that fsspec knows: every file first, the seal last

Where a seal is missing, what lies there is half-written. A place that holds anything of somebody else's is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from advisor.errors import FileProblem, InputError
from advisor.executor.bookkeeping.journal import digest, sync_and_hash
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.publishing.seal import SEAL, Seal, read_seal

PLACE = re.compile(r"([a-z][a-z0-9+.-]*)://(/?[^/\s][^\s]*)")
KEPT = 32 * 2**20
"""bytes of a file that `fetch` brings here without being asked for all"""


class Shelf(Protocol):
    """Where a folder can be sent to."""

    place: str

    def check_writable(self) -> None:
        """Raise InputError, FileProblem where a result could not be put, as far as can be told without putting one."""

    def seal(self) -> Seal | None:
        """What lies there, whole; None: nothing, or something half-written. Raises FileProblem for what is not ours."""

    def put(self, folder: Path, seal: Seal, tick: Callable[[int], None]) -> str:
        """Send a sealed folder, and say where it is now. Raises FileProblem, InputError; then no seal is there."""

    def sizes(self) -> dict[str, int]:
        """Path within the folder -> bytes, of what lies there. Raises FileProblem."""

    def bring(self, name: str, target: Path) -> None:
        """Fetch one file. Raises FileProblem."""


def open_shelf(place: str) -> Shelf:
    """The place's shelf. Raises InputError for what is no place, MissingExtra without the library that reaches it."""
    found = PLACE.fullmatch(place.rstrip("/"))
    if found is None or any(part in (".", "..") for part in found[2].split("/")) or set(found[2]) & set("*?[]#"):
        raise InputError(
            "this is no place to publish to",
            where=place,
            hint="hf://org/name, s3://bucket/folder, gs://…, or file:///folder, without .. and wildcards",
        )
    if found[1] == "hf":
        from advisor.executor.publishing.hub_repository import HubRepository

        return HubRepository(place.rstrip("/"), found[2])
    from advisor.executor.publishing.object_store import FileStore, ObjectStore

    return FileStore(place, found[2]) if found[1] == "file" else ObjectStore(place.rstrip("/"), found[1])


def deliver(shelf: Shelf, folder: Path, progress: Progress) -> str:
    """Send a published folder to a place; what is there already is not sent again. In words: where it is.

    Raises FileProblem for a folder that is not sealed or no longer as it was, for a place that is not free or cannot be
    reached. The folder itself stays as it is, so the same command sends it again.
    """
    seal = read_seal(folder)
    there = shelf.seal()
    if seal is not None and there is not None and digest(there.model_dump()) == digest(seal.model_dump()):
        progress.say("sent", f"{shelf.place} has it already", place=shelf.place, again=True)
        return shelf.place
    if seal is None or seal.broken(folder, content=True):
        raise FileProblem("this folder is not as it was published", where=str(folder), hint="publish it again")
    where = shelf.put(folder, seal, progress.track(f"sending to {shelf.place}", len(seal.files) + 1))
    progress.say("sent", f"published at {where}", place=shelf.place, where=where, again=False)
    return where


def fetch(shelf: Shelf, folder: Path, *, content: bool = False, keep: bool = False) -> tuple[str, ...] | None:
    """Bring the small files of a place into a folder, and say which of all are not there as sealed: by size, and with
    `content` by SHA-256, for which everything comes here. keep: everything comes and stays.

    None: there is no seal, so it is half-written, or nothing. Raises FileProblem: it cannot be reached.
    """
    seal = shelf.seal()
    if seal is None:
        return None
    sizes = shelf.sizes()
    broken = []
    for name, file in seal.files.items():
        if sizes.get(name) != file.size:
            broken.append(name)
            continue
        if not (content or keep or file.size <= KEPT):
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shelf.bring(name, target)
        if sync_and_hash(target) != file.sha256:
            broken.append(name)
        if file.size > KEPT and not keep:
            target.unlink()
    shelf.bring(SEAL, folder / SEAL)
    return tuple(broken)
