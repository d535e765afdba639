"""The names of the GPUs in profiles/gpus: ids, usual short names, and the names that NVML gives them."""

from __future__ import annotations

import re
from functools import cache

from advisor import library
from advisor.errors import UnknownName

MEANINGLESS = frozenset({"nvidia", "tesla", "geforce", "gpu"})
"""Words that tell no two GPUs apart."""


def gpu_names() -> tuple[str, ...]:
    """The ids in profiles/gpus, sorted."""
    return library.profile_names("gpus")


def identify(name: str) -> tuple[str | None, bool]:
    """The id of a GPU's name (None: nobody has heard of it), and whether the name left something open."""
    key = _key(name)
    if key in _table("exact"):
        return _table("exact")[key], False
    return _table("short").get(key), True


def relatives(identity: str) -> tuple[str, ...]:
    """The other ids of the same chip name: h100-pcie-80gb for h100-sxm-80gb."""
    chip = _chip(identity)
    return tuple(other for other in gpu_names() if other != identity and _chip(other) == chip)


def unknown(name: str) -> UnknownName:
    """The error for a name that nobody has heard of, with the nearest ids and short names, or all ids when none is near."""
    known = dict.fromkeys([*gpu_names(), *(said.lower() for kind in ("short", "exact") for said in _names(kind))])
    error = UnknownName("GPU", name, known, where=f"--gpu {name!r}")
    near = dict.fromkeys(identify(one)[0] or one for one in error.near)  # many names are one GPU's
    error.hint = f"did you mean {' or '.join(near)}?" if near else "known are: " + ", ".join(gpu_names())
    return error


def _key(name: str) -> str:
    """What is compared of a name: letters and digits of the words that mean something."""
    return "".join(word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in MEANINGLESS)


def _chip(identity: str) -> str:
    """Letters and the first number of an id: h100, gh200, rtxpro6000."""
    found = re.match(r"[a-z]+[0-9]+", _key(identity))
    return found.group() if found else identity


def _names(kind: str) -> dict[str, str]:
    """Name as people and NVML write it -> id: "exact" ones, or "short" ones, which leave something open."""
    table = library.profile("gpus", "_names")
    assert table is not None  # shipped with the program
    names: dict[str, str] = table[kind]
    return names


@cache
def _table(kind: str) -> dict[str, str]:
    return {_key(str(name)): identity for name, identity in _names(kind).items()}
