"""The model to serve: a local folder, a name in profiles/models, or a hub id."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from advisor.errors import FileProblem, MissingExtra, ModelProblem, UnknownName
from advisor.profiler.folder import read_folder
from advisor.profiler.known_models import find_known, find_variant, known_names, read_known
from advisor.types import Model

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_FILE_SUFFIXES = (".json", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".yaml")


def read_model(name_or_path: str) -> tuple[Model, dict[str, str]]:
    """The model and the source of each of its facts ("model.layers" -> "config.json").

    An existing folder (or the path of its config.json) comes first, then the names of profiles/models, then the hub.
    Weights are never loaded, pickled files never opened, a repository's own code never run.
    Raises FileProblem or ModelProblem for a folder that does not describe a model, UnknownName, and the hub's errors.
    """
    name = name_or_path.strip()
    if not name or "\0" in name or len(name) > 4096:
        raise UnknownName("model", name[:60], (), hint="give a folder, a name of profiles/models or a hub id")
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises for users that do not exist)
    if _exists(path):
        try:
            return read_folder(path)
        except OSError as error:
            raise FileProblem(f"cannot be read: {error.strerror}", where=name, hint="check its permissions") from None
    if _looks_like_path(name):
        raise FileProblem("there is no such folder", where=name, hint="give the folder that holds config.json")
    known = find_known(name)
    if known is not None:
        return read_known(known)
    base = find_variant(name)
    if base is not None:
        model, sources = read_known(base)
        note = f"Read from {model.name}, the base model of {name}: the architecture is the same, the context may differ."
        return model.model_copy(update={"name": name, "notes": (*model.notes, note)}), sources
    if _HUB_ID.fullmatch(name):
        from advisor.profiler.hub import read_hub

        try:
            return read_hub(name)
        except (ModelProblem, MissingExtra) as error:
            near = _nearest(name)
            if near is None:
                raise
            hint = f"did you mean {near}, which needs no hub? {error.hint}"
            raise type(error)(error.what, where=error.where, hint=hint) from None
    raise UnknownName("model", name, known_names(), hint="or give a local folder, or a hub id such as org/name")


def _nearest(repository: str) -> str | None:
    """The known hub id that somebody may have meant: the same name under another owner, or nearly the same."""
    names = known_names()
    near = difflib.get_close_matches(repository.lower(), [name for name in names if "/" in name], n=1, cutoff=0.85)
    stem = find_known(repository.split("/")[1]) or (names[near[0]] if near else None)
    return stem.replace("--", "/", 1) if stem else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith(("/", ".", "~"))
        or name.endswith("/")
        or "\\" in name
        or name.count("/") > 1
        or name.lower().endswith(_FILE_SUFFIXES)
    )
