"""Places that fsspec reaches (S3, GCS, Azure, memory, …) and local folders. The only file that imports fsspec.

An object store has no rename of many objects: the files go first, in any order, the seal last, each object whole or not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from advisor.errors import AdvisorError, FileProblem, MissingExtra
from advisor.executor.bookkeeping.journal import file_errors, sync_and_hash, sync_folder
from advisor.executor.publishing.seal import SEAL, Seal, parse_seal, read_seal, seal_text

BEGUN = "publishing.json"
"""the seal that is to come: what lies beside it without a seal is ours and half-written"""
EXTRAS = {"s3": "pip install 'inference-advisor[s3]'"}


class ObjectStore:
    """A folder of an fsspec file system, which reads its own credentials and settings (AWS_*, FSSPEC_*)."""

    def __init__(self, place: str, scheme: str) -> None:
        self.place = place
        try:
            import fsspec

            self.system, self.root = fsspec.url_to_fs(place)
        except ImportError as error:
            raise MissingExtra(
                f"{scheme}:// is reached by a package that is not installed: {error}",
                where=place,
                hint=EXTRAS.get(scheme, "install the package that it names"),
            ) from None
        except ValueError as error:
            raise FileProblem(f"no file system is called {scheme}: {error}", where=place, hint="s3, gs, az, file, …") from None
        self.root = self.root.rstrip("/")

    def seal(self) -> Seal | None:
        """The seal, of which there is one only where all files are."""
        with _store_errors(self.place):
            self.system.invalidate_cache()
            if not self.system.exists(self._path(SEAL)):
                return None
            text = self.system.cat_file(self._path(SEAL)).decode("utf-8", "replace")
        return parse_seal(text, f"{self.place}/{SEAL}")

    def check_writable(self) -> None:
        """Whether the place answers, and is empty or ours."""
        there = set(self.sizes())
        if there and not there & {SEAL, BEGUN}:
            raise FileProblem(f"the place is not empty: {min(there)}", where=self.place, hint="give another place, or empty it")

    def put(self, folder: Path, seal: Seal, tick: Callable[[int], None]) -> str:
        """First what is to come, then every file, held against its size there, then the seal."""
        self.check_writable()
        if self.seal() is not None:
            raise FileProblem("another result is published there", where=self.place, hint="give a place of its own to each")
        left = set(self.sizes()) - set(seal.files) - {BEGUN}
        begun = seal_text(seal).encode()
        with _store_errors(self.place):
            if left:  # by an attempt that was stopped
                self.system.rm([self._path(name) for name in sorted(left)])
            self.system.makedirs(self.root, exist_ok=True)
            self.system.pipe_file(self._path(BEGUN), begun)
            for done, (name, file) in enumerate(seal.files.items(), 1):
                self._check_alone(begun)
                path = self._path(name)
                self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
                self.system.put_file(str(folder / name), path)
                self.system.invalidate_cache()
                if self.system.size(path) != file.size:
                    raise FileProblem(f"{name} did not arrive whole", where=self.place, hint="run the same command again")
                tick(done)
            self._check_alone(begun)
            self.system.pipe_file(self._path(SEAL), begun)
            self.system.rm_file(self._path(BEGUN))
        tick(len(seal.files) + 1)
        return self.place

    def sizes(self) -> dict[str, int]:
        """Of everything below the place."""
        with _store_errors(self.place):
            self.system.invalidate_cache()
            found: dict[str, Any] = self.system.find(self.root, detail=True)
        start = len(self._path(""))
        return {path[start:]: int(entry["size"]) for path, entry in found.items() if len(path) > start}

    def bring(self, name: str, target: Path) -> None:
        """One object."""
        with _store_errors(self.place):
            self.system.get_file(self._path(name), str(target))

    def _check_alone(self, begun: bytes) -> None:
        """Raise FileProblem when another run has begun to publish there since: the later one ends it."""
        if self.system.cat_file(self._path(BEGUN)) != begun:
            hint = "let it finish: one place is for one result"
            raise FileProblem("another run publishes there", where=self.place, hint=hint)

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


class FileStore:
    """A folder of this machine's file systems, renamed into its place."""

    def __init__(self, place: str, path: str) -> None:
        self.place = place
        self.folder = Path(path)

    def check_writable(self) -> None:
        """Whether the folder it would lie in is there and may be written to."""
        if not os.access(self.folder.parent, os.W_OK):
            hint = "make the folder above it, or give another place"
            raise FileProblem("this folder cannot be written into", where=str(self.folder.parent), hint=hint)

    def seal(self) -> Seal | None:
        """The folder's own."""
        return read_seal(self.folder)

    def put(self, folder: Path, seal: Seal, tick: Callable[[int], None]) -> str:
        """Copies beside the place, synced, then one rename."""
        if self.folder.exists():
            raise FileProblem("something is there already", where=self.place, hint="give another place, or remove it")
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        with file_errors(partial):
            shutil.rmtree(partial, ignore_errors=True)
            for done, name in enumerate((*seal.files, SEAL), 1):
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, target)
                shutil.copymode(folder / name, target)
                sync_and_hash(target)
                sync_folder(target.parent)
                tick(done)
            partial.rename(self.folder)
            sync_folder(self.folder.parent)
        return self.place

    def sizes(self) -> dict[str, int]:
        """Of everything in the folder."""
        with file_errors(self.folder):
            paths = [path for path in self.folder.rglob("*") if path.is_file()]
            return {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}

    def bring(self, name: str, target: Path) -> None:
        """A copy."""
        with file_errors(target):
            shutil.copyfile(self.folder / name, target)


class _store_errors:  # noqa: N801 (reads as a function)
    """Whatever a store's library raises, as what and where: each has its own tree of errors."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, AdvisorError):
            said = str(error).strip().splitlines() or [type(error).__name__]
            hint = "check the place, the network and the credentials, then run the same command again"
            raise FileProblem(f"the store does not answer as it should: {said[0][:200]}", where=self.place, hint=hint) from None
