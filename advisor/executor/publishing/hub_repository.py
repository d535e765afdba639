"""A repository of a Hugging Face hub as a place to publish to: one commit, so that readers see all of it or nothing.

huggingface_hub reads HF_TOKEN, HF_HOME and proxies itself; HF_ENDPOINT is read here at each use. The checkpoint's files lie at
the root, where engines look for them, and the rest in advice/.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from advisor.errors import AdvisorError, FileProblem, InputError, MissingExtra
from advisor.executor.emitting.site import CHECKPOINT
from advisor.executor.publishing.seal import SEAL, Seal, parse_seal

ADVICE = "advice"
MAIN = "main"


class HubRepository:
    """One branch of one repository."""

    def __init__(self, place: str, path: str) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.utils
        except ImportError:
            raise MissingExtra(
                "a hub is reached by huggingface_hub", where=place, hint="pip install 'inference-advisor[hub]'"
            ) from None
        self.place = place
        self.repository, _, branch = path.partition("@")
        self.branch = branch or MAIN
        if self.repository.count("/") != 1:
            raise InputError("a hub repository is org/name", where=place, hint="hf://org/name or hf://org/name@branch")
        self.library = huggingface_hub
        huggingface_hub.utils.disable_progress_bars()  # stderr is for our own lines
        self.api = huggingface_hub.HfApi(endpoint=(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"))
        self.head: str | None = None
        """the commit that was looked at, which a new one has to follow"""

    def check_writable(self) -> None:
        """Whether there is a token, and the hub knows it: asked before the work and not after it."""
        with self._errors():
            if not self.library.get_token():
                raise InputError("the hub takes nothing without a token", where=self.place, hint="set HF_TOKEN")
            self.api.whoami()

    def seal(self) -> Seal | None:
        """The seal of the branch's head."""
        found = self._file(SEAL)
        return (
            None if found is None else parse_seal(found.read_text(encoding="utf-8", errors="replace"), f"{self.place}/{SEAL}")
        )

    def put(self, folder: Path, seal: Seal, tick: Callable[[int], None]) -> str:
        """Large files are uploaded first and belong to nothing; the one commit that names them all makes them the branch's.

        Files of the result that was there before, and are none of this one's, go in the same commit.
        """
        before = self.seal()
        names = [*seal.files, SEAL]
        library = self.library
        added = [library.CommitOperationAdd(path_in_repo=placed(name), path_or_fileobj=str(folder / name)) for name in names]
        gone = sorted({placed(name) for name in (before.files if before else {})} - {one.path_in_repo for one in added})
        with self._errors():
            self.api.create_repo(self.repository, private=True, exist_ok=True)
            if self.branch != MAIN:
                self.api.create_branch(self.repository, branch=self.branch, exist_ok=True)
            if self.head is None:
                self.head = self.api.repo_info(self.repository, revision=self.branch).sha
            for done, one in enumerate(added, 1):
                self.api.preupload_lfs_files(self.repository, [one], revision=self.branch, free_memory=False)
                tick(done)
            made = self.api.create_commit(
                self.repository,
                [*added, *(library.CommitOperationDelete(path_in_repo=name) for name in gone)],
                commit_message=seal.summary[:72],
                commit_description=f"Published by advise apply, key {seal.key[:16]}",
                revision=self.branch,
                parent_commit=self.head,
            )
            self.head = made.oid
        there = self.sizes()
        lost = [name for name, file in seal.files.items() if there.get(name) != file.size]
        if lost:
            raise FileProblem(f"{lost[0]} is not in the commit", where=made.commit_url, hint="look for it in .gitignore there")
        return str(made.commit_url)

    def sizes(self) -> dict[str, int]:
        """Of the files of the head, those of others too."""
        with self._errors():
            tree = self.api.list_repo_tree(self.repository, revision=self.head or self.branch, recursive=True)
            return {_local(one.path): int(one.size) for one in tree if hasattr(one, "size")}

    def bring(self, name: str, target: Path) -> None:
        """By way of the hub's own cache."""
        found = self._file(name)
        if found is None:
            raise FileProblem(f"{name} is not there", where=self.place, hint="publish it again")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, target)

    def _file(self, name: str) -> Path | None:
        errors = self.library.errors
        with self._errors():
            try:
                if self.head is None:
                    self.head = self.api.repo_info(self.repository, revision=self.branch).sha
                return Path(self.api.hf_hub_download(self.repository, placed(name), revision=self.head))
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
                return None

    def _errors(self) -> _hub_errors:
        return _hub_errors(self.place)


def placed(name: str) -> str:
    """Where a file of the output folder lies in a repository."""
    folder, _, rest = name.partition("/")
    return rest if folder == CHECKPOINT and rest else name if name == SEAL else f"{ADVICE}/{name}"


def _local(path: str) -> str:
    """A repository's path as one of the output folder."""
    folder, _, rest = path.partition("/")
    return rest if folder == ADVICE and rest else path if path == SEAL else f"{CHECKPOINT}/{path}"


class _hub_errors:  # noqa: N801 (reads as a function)
    """The library's errors as ours; what the hub itself says is in them."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: Any, _trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, AdvisorError):
            return
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = {
            401: "HF_TOKEN is not one of this hub's",
            403: "the token may not write there: give it that right, or another place",
            412: "somebody committed there meanwhile: run the same command again",
        }.get(status or 0, "check the place, the network and HF_TOKEN, then run the same command again")
        raise FileProblem(f"the hub does not answer as it should: {str(said)[:200]}", where=self.place, hint=hint) from None
