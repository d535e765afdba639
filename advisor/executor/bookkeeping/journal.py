"""What a run did, one JSON line an event, so that a killed run goes on where it stopped.

The work folder holds journal.jsonl, a lock and what the stages made. A stage that is finished has an event with the hash
of its inputs and of each file it left; nothing else on the disk is believed. So a half-written file is one that no event
names, and a stage whose inputs changed is simply not found.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from advisor.errors import AdvisorError, FileProblem, NotPossible

Made = tuple[dict[str, Any], tuple[Path, ...]]
LOCK = "lock"
_CHUNK = 2**22


class Journal:
    """The journal of one work folder, held by one process at a time. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.events: list[dict[str, Any]] = []
        self.base = ""
        """hash of what every stage depends on (model, versions): a part of each stage's key"""
        self.left_at: float | None = None
        """when the process that last held the folder was last at work, seconds since the epoch; None: there was none"""
        self._lock: IO[str] | None = None
        self._verified: set[str] = set()

    def __enter__(self) -> Journal:
        """Take the lock and read what is there. Raises FileProblem: another run holds it, or the journal is not one."""
        with file_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock, self.left_at = _locked(self.folder)
            try:
                self.events = _read(self.path)
            except BaseException:
                self._lock.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let the lock go; a folder in which nothing was begun goes too."""
        if self._lock is not None:
            if not self.events:
                with contextlib.suppress(OSError):
                    (self.folder / LOCK).unlink()
                    self.folder.rmdir()
            self._lock.close()

    def record(self, event: str, **values: Any) -> None:
        """Append one event and see it onto the disk. Raises FileProblem, with the disk full too."""
        line = {"event": event, "at": round(time.time(), 3), **values}
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n"
        with file_errors(self.path):
            new = not self.path.exists()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self.folder)
        self.events.append(line)

    def find(self, stage: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The value of a stage that was finished with these inputs and whose files are still what they were, or None."""
        key = self._key(inputs)
        for event in reversed(self.events):
            if event["event"] != "finished" or event["stage"] != stage or event["key"] != key:
                continue
            token = f"{stage}:{key}"
            if token not in self._verified:
                changed = [name for name, known in event["files"].items() if _hash_or_none(self.folder / name) != known]
                if changed:
                    self.record("discarded", stage=stage, key=key, files=changed)
                    return None
                self._verified.add(token)
            value: dict[str, Any] = event["value"]
            return value
        return None

    def events_key(self, stage: str) -> str | None:
        """The hash of a finished stage's files as last recorded, or None."""
        event = next((one for one in reversed(self.events) if one["event"] == "finished" and one["stage"] == stage), None)
        return digest(event["files"]) if event else None

    def do(
        self, stage: str, inputs: Mapping[str, Any], make: Callable[[], Made], *,
        suffices: Callable[[dict[str, Any]], bool] = lambda _value: True,
    ) -> tuple[dict[str, Any], bool]:  # fmt: skip
        """The value of a stage, and whether it was there already: made now unless it is finished.

        make returns a value (plain data) and the files it left in the work folder; these are hashed and synced before the
        event says so. suffices: whether a value that is there is enough; what was cut short may be made again.
        """
        found = self.find(stage, inputs)
        if found is not None and suffices(found):
            return found, True
        began = time.monotonic()
        key = self._key(inputs)
        self.record("started", stage=stage, key=key)
        value, files = make()
        with file_errors(self.folder):
            hashes = {str(path.relative_to(self.folder)): sync_and_hash(path) for path in sorted(files)}
            for folder in {path.parent for path in files} | {self.folder}:
                sync_folder(folder)
        seconds = round(time.monotonic() - began, 3)
        plain = json.loads(json.dumps(value))
        self.record("finished", stage=stage, key=key, files=hashes, value=plain, seconds=seconds)
        self._verified.add(f"{stage}:{key}")
        return plain, False

    def beat(self) -> None:
        """Leave the time on the disk, so that a run that is killed now is known to have worked until now."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / LOCK)

    def seconds_before(self) -> float:
        """Seconds that earlier processes have worked in this folder: from the start of each to its last sign of life."""
        last = next((event for event in reversed(self.events) if event["event"] == "session"), None)
        if last is None:
            return 0.0
        ended = max(self.events[-1]["at"], self.left_at or 0.0)
        return float(last["before"] + max(0.0, ended - last["at"]))

    def _key(self, inputs: Mapping[str, Any]) -> str:
        return digest([self.base, inputs])


class file_errors:  # noqa: N801 (reads as a function)
    """Turn the operating system's errors into FileProblem: what, where, and that finished work is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise file_problem(error, self.path) from None
        if type(error).__name__ == "SafetensorError":  # the library wraps the system's error in words
            full = any(f"os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
            raise file_problem(OSError(errno.ENOSPC if full else errno.EIO, str(error)), self.path) from None


def file_problem(error: OSError, path: Path) -> AdvisorError:
    """The operating system's error as one the user can act on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else f"cannot write: {error.strerror or error}"
    hint = "free space and run the same command with --resume: finished work is kept" if full else "check the folder"
    return FileProblem(what, where=str(error.filename or path), hint=hint)


def digest(value: object) -> str:
    """SHA-256 of plain data, the same for the same data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
    return whole.hexdigest()


def hash_folder(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of every file under a folder, sorted. Raises FileProblem."""
    with file_errors(folder):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hash_file(path) for path in paths}


def sync_and_hash(path: Path) -> str:
    """See a file onto the disk and give its SHA-256. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return hash_file(path)


def sync_folder(folder: Path) -> None:
    """See a folder's entries onto the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def finished_stages(events: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of the stages that were finished, in order, each once."""
    return tuple(dict.fromkeys(event["stage"] for event in events if event["event"] == "finished"))


def _hash_or_none(path: Path) -> str | None:
    try:
        return hash_file(path)
    except OSError:
        return None


def _locked(folder: Path) -> tuple[IO[str], float | None]:
    """The folder's lock, held, and when its last holder was last at work. The system lets it go when its process ends."""
    try:
        import fcntl
    except ImportError:
        raise NotPossible(
            "this system has no file locks", where=str(folder), hint="run `advise apply` on Linux or macOS"
        ) from None
    path = folder / LOCK
    while True:
        left = path.stat().st_mtime if path.exists() else None
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read(32).strip()
            file.close()
            raise FileProblem(
                "another run is at work in this folder" + (f" (process {holder})" if holder.isdigit() else ""),
                where=str(folder),
                hint="wait for it, end it, or give another --out",
            ) from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # its holder had finished and removed the folder between our opening and our locking
        folder.mkdir(parents=True, exist_ok=True)
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file, left


def _read(path: Path) -> list[dict[str, Any]]:
    """The events; a last line that was not written whole is cut off. Raises FileProblem for any other that is none."""
    if not path.exists():
        return []
    content = path.read_bytes()
    good, events = 0, []
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            event = json.loads(line)
            if not isinstance(event, dict) or "event" not in event:
                raise ValueError("no event")
        except ValueError:
            if number == len(lines):
                break
            raise FileProblem(
                "this journal has a line that is no event",
                where=f"{path}:{number}",
                hint="remove the work folder and start again",
            ) from None
        events.append(event)
        good += len(line)
    if good < len(content):
        with path.open("r+b") as file:
            file.truncate(good)
            os.fsync(file.fileno())
    return events
