"""Whether serving files still say what was advised.

trtllm.yaml is compared key by key. In serve.sh, slurm.sh and the manifests every advised command-line flag and every line
of the engine configuration must be there; names, images, ports, volumes and the like are the platform's own and not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem
from advisor.executor.bookkeeping.journal import hash_folder
from advisor.executor.publishing.delivery import fetch, open_shelf
from advisor.executor.publishing.seal import SEAL, read_seal
from advisor.freshness import Drift
from advisor.library import parse_yaml, read_text
from advisor.types import Report, Scalar

CONFIG = "trtllm.yaml"
FOLDERS = ("", "serving")
"""where in an applied folder the files may lie"""
JOURNAL = "journal.jsonl"
CHECKPOINT = "checkpoint"
WEIGHTS = (".safetensors", ".bin", ".pt")
COMPARED = (CONFIG, "serve.sh", "slurm.sh", "kubernetes.yaml", "dynamo.yaml")
OWN = ("--host", "--port", "--config", "--mpi", "--container-image", "--container-mounts", "--container-workdir")
_FLAG = re.compile(r"(?<![\w-])(--[a-z][\w.-]*)(?:[\s=\"',]+(?!-)([^\s\"',\]\\]+))?")
_ABSENT = "(not set)"


def served_drifts(report: Report, folder: Path) -> tuple[Drift, ...]:
    """One drift for each setting in the folder's files that is not as advised. Raises FileProblem where no file is."""
    from advisor.executor.emitting.serving import write_serving

    advised = write_serving(report.plan, report.profile)
    found = {name: path for name in COMPARED if name in advised for path in _paths(folder, name)}
    if not found:
        wanted = ", ".join(name for name in COMPARED if name in advised)
        raise FileProblem("no serving files are here", where=str(folder), hint=f"one of {wanted} is wanted (`advise emit`)")
    config = advised.get(CONFIG, "")
    drifts: list[Drift] = []
    for name, path in found.items():
        text = read_text(path, what="serving file")
        if name == CONFIG:
            drifts += _settings(advised[name], text, str(path))
            continue
        drifts += _flags(advised[name], text, str(path))
        if name.endswith(".yaml"):
            drifts += _lines(config, text, str(path))
    return tuple(drifts)


def sealed_drifts(folder: Path) -> tuple[Drift, ...]:
    """Files of a published folder's checkpoint that are gone or of another size, and a seal that is missing: half-written.

    A folder that `advise apply` did not make has neither seal nor journal, and no drift. Raises FileProblem.
    """
    seal = read_seal(folder)
    if seal is None:
        return (_half_written(str(folder)),) if (folder / JOURNAL).is_file() else ()
    broken = (name for name in seal.broken(folder, content=False) if name.startswith(f"{CHECKPOINT}/"))
    return tuple(_broken(f"{folder}/{name}") for name in broken)


def bring(place: str, folder: Path, *, hashes: bool) -> tuple[Drift, ...]:
    """Fetch what is published at a place (hf://, s3://, …) into a folder, but for large files; a drift for each that is not
    there as published, by size and with `hashes` by SHA-256, or for the whole where it is half-written.

    Raises InputError, MissingExtra, FileProblem.
    """
    broken = fetch(open_shelf(place), folder, content=hashes)
    return (_half_written(place),) if broken is None else tuple(_broken(f"{place}/{name}") for name in broken)


def content_drifts(folder: Path, model: Path | None = None) -> tuple[Drift, ...]:
    """Files of an applied folder's checkpoint that are not those that passed the gate, by the journal's SHA-256; and with the
    model's folder, its files that are not those that the checkpoint was made from. Raises FileProblem without a journal."""
    events = _events(folder / JOURNAL)
    passed = {(Path(name).name, value) for one in events if one["event"] == "finished" for name, value in one["files"].items()}
    checkpoint = folder / CHECKPOINT
    there = {name: value for name, value in hash_folder(checkpoint).items() if name.endswith(WEIGHTS)}
    drifts = [
        Drift(
            fact=f"{checkpoint}/{name}", advised=None, now=f"sha256 {value[:12]}", stale=True, says="not what passed the gate"
        )
        for name, value in there.items()
        if (Path(name).name, value) not in passed
    ]
    if not there:
        drifts.append(Drift(fact=str(checkpoint), advised=None, now=None, stale=True, says="the checkpoint has no weights"))
    return (*drifts, *(origin_drifts(folder, model) if model is not None else ()))


def origin_drifts(folder: Path, model: Path) -> tuple[Drift, ...]:
    """The model's files that are not those that an applied folder's checkpoint was made from. Raises FileProblem."""
    events = _events(folder / JOURNAL)
    made_from: dict[str, str] = next((one["model"] for one in reversed(events) if one["event"] == "inputs"), {})
    now = hash_folder(model)
    drifts = []
    for name in sorted(made_from):
        if name.endswith((*WEIGHTS, "config.json")) and now.get(name) != made_from[name]:
            short = f"sha256 {made_from[name][:12]}"
            yet = f"sha256 {now[name][:12]}" if name in now else "gone"
            drifts.append(Drift(fact=f"{model}/{name}", advised=short, now=yet, stale=True, says="made from other weights"))
    return tuple(drifts)


def _half_written(where: str) -> Drift:
    return Drift(fact=where, advised=None, now=None, stale=True, says=f"half-written: there is no {SEAL}, do not serve it")


def _broken(where: str) -> Drift:
    return Drift(fact=where, advised=None, now=None, stale=True, says="not there as it was published")


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in read_text(path, what="journal").splitlines()]
        if all(isinstance(one, dict) and "event" in one for one in found):
            return found
    except ValueError:
        pass
    raise FileProblem("this is not a journal of `advise apply`", where=str(path), hint="give the folder that it published")


def _paths(folder: Path, name: str) -> Iterator[Path]:
    for place in FOLDERS:
        path = folder / place / name
        if path.is_file():
            yield path
            return


def _drift(fact: str, advised: Scalar, now: Scalar) -> Drift:
    return Drift(fact=fact, advised=advised, now=now, stale=True, says="not what was advised")


def _settings(advised: str, text: str, where: str) -> Iterator[Drift]:
    wanted, found = dict(_flat(parse_yaml(advised, where=CONFIG))), dict(_flat(parse_yaml(text, where=where)))
    for key in sorted(set(wanted) | set(found)):
        if wanted.get(key, _ABSENT) != found.get(key, _ABSENT):
            yield _drift(f"{where} {key}", wanted.get(key, _ABSENT), found.get(key, _ABSENT))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, value


def _code(text: str) -> list[str]:
    """The lines without comments; a leading "- " of a YAML list is no part of a word."""
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines())
    return [line.removeprefix("- ") for line in lines if line]


def _flags(advised: str, text: str, where: str) -> Iterator[Drift]:
    wanted, found = _flags_of(advised), _flags_of(text)
    for flag in sorted(set(wanted) | set(found)):
        if flag not in OWN and wanted.get(flag, _ABSENT) != found.get(flag, _ABSENT):
            yield _drift(f"{where} {flag}", wanted.get(flag, _ABSENT), found.get(flag, _ABSENT))


def _flags_of(text: str) -> dict[str, str]:
    return {flag: value or "(set)" for flag, value in _FLAG.findall("\n".join(_code(text)))}


def _lines(config: str, text: str, where: str) -> Iterator[Drift]:
    """Lines of the engine configuration that a manifest's copy of it does not have."""
    there = set(_code(text))
    for line in _code(config):
        if line not in there:
            key = line.split(":")[0]
            now = next((one for one in there if one.split(":")[0] == key), _ABSENT)
            yield _drift(f"{where} {key}", line.partition(": ")[2] or line, now.partition(": ")[2] or now)
