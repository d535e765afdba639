"""Models in profiles/models: found by hub id or by the usual short names, described by the same code as a config.json."""

from __future__ import annotations

import re
from typing import Any

from advisor.library import profile
from advisor.profiler.architecture import describe
from advisor.profiler.checkpoint import read_quantized
from advisor.types import Draft, Model

_TUNED = re.compile(r"-(instruct|it|chat)(?=-hf$|$)", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def known_names() -> dict[str, str]:
    """Short name or hub id, lower case -> file in profiles/models, without suffix."""
    names: dict[str, str] = profile("models", "_names") or {}
    return names


def find_known(name: str) -> str | None:
    """The file of profiles/models for a hub id or short name, whatever its case and its dashes; None when it is not there."""
    if _HUB_ID.fullmatch(name):
        stem = name.replace("/", "--")
        if profile("models", stem) is not None:
            return stem
    names = known_names()
    wanted = name.strip().lower()
    if wanted in names:
        return names[wanted]
    squeezed = _squeeze(wanted)
    return next((stem for known, stem in names.items() if _squeeze(known) == squeezed), None)


def find_variant(name: str) -> str | None:
    """The file of the base model that an instruction-tuned variant has the architecture of (…-Instruct, -it, -Chat)."""
    base = _TUNED.sub("", name.strip())
    return find_known(base) if base != name.strip() else None


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9/]", "", name)


def read_known(stem: str) -> tuple[Model, dict[str, str]]:
    """The Model of a file in profiles/models, and the source of each of its facts.

    A quantized checkpoint of a known model has only its own record and `same_as`, the file of that model.
    """
    facts = _facts(stem)
    where = f"profiles/models/{stem}.yaml"
    config: dict[str, Any] = facts["config"]
    model = describe(config, name=facts["id"], where=where)
    quantized, notes = read_quantized(config, facts.get("hf_quant_config"), where=where)
    model = model.model_copy(
        update={
            "quantized": quantized,
            "drafts": tuple(Draft(**draft) for draft in facts.get("drafts", ())),
            "siblings": tuple(facts.get("siblings", ())),
            "checkpoints": facts.get("checkpoints", {}),
            "notes": (*model.notes, *notes, *facts.get("notes", ())),
        }
    )
    return model, sources_of(model, where)


def _facts(stem: str) -> dict[str, Any]:
    facts: dict[str, Any] = profile("models", stem) or {}
    if "same_as" not in facts:
        return facts
    base = _facts(facts["same_as"])
    config = {key: value for key, value in base["config"].items() if key != "quantization_config"}
    return {**base, "checkpoints": {}, **facts, "config": config}


def relatives(model: Model, sources: dict[str, str]) -> tuple[Model, dict[str, str]]:
    """The model with the published drafts, checkpoints and smaller siblings of the known model that it is by name and sizes
    (a copy or a fine-tune); unchanged when there is none."""
    stem = find_known(model.name)
    if stem is None:
        return model, sources
    known, _ = read_known(stem)
    if any(getattr(known, size) != getattr(model, size) for size in ("layers", "hidden", "vocab", "heads")):
        return model, sources
    where = f"profiles/models/{stem}.yaml"
    names = ("drafts", "siblings", "checkpoints")
    added = {f"model.{name}": where for name in names if getattr(known, name)}
    return model.model_copy(update={name: getattr(known, name) for name in names}), sources | added


def sources_of(model: Model, source: str) -> dict[str, str]:
    """Every fact of the model that is known (empty lists and None are not), from one source."""
    values = {name: getattr(model, name) for name in type(model).model_fields if name != "notes"}
    return {f"model.{name}": source for name, value in values.items() if value is not None and value != () and value != {}}
