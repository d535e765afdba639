"""Profiles and reports kept as files, so that later commands, other machines and tests need no GPU."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from advisor.errors import FileProblem
from advisor.library import read_text, write_whole
from advisor.types import Plan, Profile, Report

Kept = TypeVar("Kept", Profile, Report, Plan)
SCHEMA_VERSION = 1
LARGEST = 16 * 2**20
_REPORT_HINT = "make it again with `advise … --format json -o FILE.json`"
_HINT = "make it again with `advise profile … --save FILE.json`"


def save_profile(profile: Profile, path: str | Path) -> None:
    """Write a profile as JSON, whole or not at all. Raises FileProblem."""
    content = {"schema_version": SCHEMA_VERSION, "profile": profile.model_dump(mode="json")}
    write_whole(Path(path), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load_profile(path: str | Path) -> Profile:
    """The profile in a file of save_profile, a bare Profile, or the one inside a report.

    Raises FileProblem: not JSON, another schema version, keys or values that no profile has.
    """
    where = str(path)
    data = _parsed(read_text(Path(path), largest=LARGEST, what="profile"), where, _HINT)
    if not isinstance(data, dict):
        raise FileProblem("this is not a profile: it is no JSON object", where=where, hint=_HINT)
    if "schema_version" in data or "profile" in data:
        version = data.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise FileProblem(
                f"schema version {version!r} of this profile is not the one read here, {SCHEMA_VERSION}",
                where=where,
                hint=_HINT,
            )
        inner = data.get("profile")
        if not isinstance(inner, dict):
            raise FileProblem("this file has no profile in it", where=where, hint=_HINT)
        if "plan" not in data and set(data) - {"schema_version", "profile"}:
            extra = ", ".join(sorted(set(data) - {"schema_version", "profile"}))
            raise FileProblem(f"unknown keys beside the profile: {extra}", where=where, hint=_HINT)
        data = inner
    profile = _validated(Profile, data, where, "profile")
    _check_numbers(profile, where)
    return profile


def load_report(path: str | Path) -> Report:
    """The report in a file of `advise --format json`. Raises FileProblem: not JSON, another version, unknown keys or values."""
    where = str(path)
    data = _parsed(read_text(Path(path), what="report"), where, _REPORT_HINT)
    if not isinstance(data, dict) or "plan" not in data:
        raise FileProblem("this is not a report: it has no plan", where=where, hint=_REPORT_HINT)
    if data.get("schema_version") != SCHEMA_VERSION:
        raise FileProblem(
            f"schema version {data.get('schema_version')!r} of this report is not the one read here, {SCHEMA_VERSION}",
            where=where,
            hint=_REPORT_HINT,
        )
    report = _validated(Report, data, where, "report")
    _check_numbers(report.profile, where)
    return report


def load_plan(path: str | Path) -> Report | Plan:
    """The report in a file, or a plan alone as `advise plan` prints it. Raises FileProblem as load_report."""
    where = str(path)
    data = _parsed(read_text(Path(path), what="plan"), where, _REPORT_HINT)
    if isinstance(data, dict) and "deployment" in data and "plan" not in data:
        return _validated(Plan, data, where, "plan")
    return load_report(path)


def _check_numbers(profile: Profile, where: str) -> None:
    for name, value in _numbers(profile.model_dump(exclude={"measured"}), ""):
        if not math.isfinite(value) or value < 0:
            raise FileProblem(f"{name} is {value}: no figure of a profile is negative or infinite", where=where, hint=_HINT)


def _parsed(text: str, where: str, hint: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise FileProblem(f"{constant} is not a JSON value", where=where, hint="write null for what is not known")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise FileProblem(f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}", hint=hint) from None
    except (RecursionError, ValueError):
        raise FileProblem("this JSON is nested too deeply, or has a number too long to read", where=where, hint=hint) from None


def _validated(value: type[Kept], data: Any, where: str, what: str) -> Kept:
    try:
        return value.model_validate(data)
    except ValidationError as error:
        _refuse(error, value, where, what)


def _refuse(error: ValidationError, value: type[BaseModel], where: str, noun: str) -> NoReturn:
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    name = ".".join(str(part) for part in first["loc"])
    what = f"{name}: {first['msg'].lower()}"
    if first["type"] == "extra_forbidden":
        known = _keys_at(value, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        what = f"{name} is no key of a {noun}" + (f"; did you mean {near[0]}?" if near else "")
    if len(problems) > 1:
        what += f" (and {len(problems) - 1} more)"
    hint = _HINT if value is Profile else _REPORT_HINT
    raise FileProblem(f"this is not a {noun}: {what}", where=where, hint=hint) from None


def _keys_at(value: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    model = value
    for part in location:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        options = [inner, *getattr(inner, "__args__", ())]
        found = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
