"""What is known of an architecture beyond its config.json: profiles/architectures, one file per model_type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from advisor.errors import ModelProblem
from advisor.library import profile, profile_names

REFUSED = {
    "encoder": "an encoder: it embeds or classifies and generates no tokens",
    "encoder-decoder": "an encoder-decoder: its decoder attends to an encoder's output, which is not modelled here",
    "other": "not a language model that generates token by token",
}
_NO_DECODE = re.compile(r"For(Sequence|Token|Image|Audio|MultipleChoice|Question|Masked|Pre[Tt]raining|Embedding|Reward)")


class Family(NamedTuple):
    """One file of profiles/architectures."""

    model_type: str
    known: bool
    gated: bool | None = None
    """three MLP matrices; None: to be read from the activation"""
    implied: Mapping[str, Any] = {}
    """what the architecture always has though no key of config.json says so, as if it were such a key"""
    defaults: Mapping[str, Any] = {}
    """what the architecture's configuration class assumes for keys that config.json leaves out"""
    note: str = ""
    """a small part of it that is not modelled, one sentence"""
    missing: str = ""
    """a large part of it that is not modelled, so that it does not count as known, one sentence"""


def find_family(*configs: Mapping[str, Any], where: str) -> Family:
    """The family by model_type, else by class name, of the first configuration that tells; the language model's own comes
    first, its wrapper's after. Raises ModelProblem for one that does not generate token by token."""
    types = [config["model_type"] for config in configs if isinstance(config.get("model_type"), str)]
    name, facts = next(((name, facts) for name in types if (facts := _facts(name))), (types[0] if types else "", None))
    if facts is None:
        found = (_by_class(entry) for config in configs for entry in _listed(config))
        name, facts = next((pair for pair in found if pair[1]), (name, None))
    if facts is None:
        return Family(name[:60], known=False)
    kind = facts.get("kind", "decoder")
    if kind != "decoder":
        raise ModelProblem(
            f"{name} is {REFUSED.get(kind, REFUSED['other'])}",
            where=where,
            hint="this program plans for decoder language models",
        )
    heads = [entry for config in configs for entry in _listed(config)]
    if heads and all(_NO_DECODE.search(entry) for entry in heads):
        raise ModelProblem(
            f"{heads[0][:80]} classifies and generates no tokens",
            where=where,
            hint="this program plans for decoder language models",
        )
    missing = facts.get("missing", "")
    implied, defaults = facts.get("implied", {}), facts.get("defaults", {})
    return Family(name, not missing, facts.get("gated"), implied, defaults, facts.get("note", ""), missing)


def _listed(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures") or [config.get("architecture")]
    return [entry for entry in listed if isinstance(entry, str)] if isinstance(listed, list) else []


def _facts(name: str) -> dict[str, Any] | None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name.lower()):
        return None
    facts: dict[str, Any] | None = profile("architectures", name.lower())
    return {**(_facts(facts["same_as"]) or {}), **facts} if facts and "same_as" in facts else facts


def _by_class(architecture: str) -> tuple[str, dict[str, Any] | None]:
    """DeepseekV3ForCausalLM belongs to deepseek_v3."""
    stem = re.split(r"For[A-Z]|LMHeadModel|Model$", architecture)[0].lower()
    match = next((name for name in profile_names("architectures") if re.sub(r"[_.-]", "", name) == stem), "")
    return match, _facts(match) if match else None
