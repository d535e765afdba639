"""The arguments that a version of TensorRT-LLM takes: JSON Schemas and command-line options kept in profiles/engines."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from advisor.errors import FileProblem, MissingExtra, NotPossible
from advisor.executor.emitting.engine_rules import RULES
from advisor.library import PROFILES

VERSIONS = ("1.2.1", "1.3")
_UNKNOWN = "is not a key of this version"


def known_version(version: str) -> str:
    """The version whose schema is kept here for a TensorRT-LLM version: "1.3.0rc27" -> "1.3". Raises NotPossible."""
    if version == "1.2" or version.startswith("1.2."):
        return "1.2.1"
    if version == "1.3" or version.startswith("1.3."):
        return "1.3"
    raise NotPossible(
        f"the arguments of TensorRT-LLM {version} are not known here",
        where="--engine-version",
        hint=f"known: {', '.join(VERSIONS)} (1.2.x is taken as 1.2.1)",
    )


@cache
def engine_schema(version: str) -> Mapping[str, Any]:
    """profiles/engines/tensorrt-llm-<version>.json: source, json_schema, cross_field_rules. Raises NotPossible, FileProblem."""
    return _stored(f"tensorrt-llm-{known_version(version)}")


@cache
def command_options(version: str, *command: str) -> Mapping[str, Mapping[str, Any]]:
    """Flag -> its facts, for ("trtllm-serve",), ("trtllm-bench", "throughput") and the like.

    Raises NotPossible, FileProblem.
    """
    found: Any = _stored("tensorrt-llm-cli")["commands"][command[0]]
    found = found[known_version(version)] if command == ("trtllm-serve",) else found
    for part in command[1:]:
        found = found[part]
    return {flag: facts for facts in found["options"].values() for flag in facts["flags"]}


def validate(config: Mapping[str, Any], version: str) -> list[tuple[str, str]]:
    """What is wrong with an LLM API configuration (the YAML's content) for a version: (path, message), none when it is valid.

    The schema says which keys and values there are; the rules that reach across fields are those of engine_rules. Raises
    NotPossible for a version not known here, MissingExtra without the package jsonschema.
    """
    version = known_version(version)
    schema = engine_schema(version)["json_schema"]
    problems = list(dict.fromkeys(_schema_problems(config, schema)))
    if not problems:
        problems = [problem for rule in RULES[version] for problem in rule(config)]
    return problems


def class_of(version: str, key: str, value: Mapping[str, Any]) -> str:
    """The class that the value of a top-level key is an instance of: KvCacheConfig, MTPDecodingConfig ..."""
    schema = engine_schema(version)["json_schema"]["properties"][key]
    for option in _options(schema):
        tagged = option.get("discriminator")
        if tagged:
            return str(tagged["mapping"][value[tagged["propertyName"]]]).rpartition("/")[2]
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    raise KeyError(key)


@cache
def _stored(name: str) -> Mapping[str, Any]:
    path = PROFILES / "engines" / f"{name}.json"
    try:
        stored: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileProblem(
            f"an engine profile cannot be read: {error}", where=str(path), hint="install this package again"
        ) from None
    return stored


def _schema_problems(config: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise MissingExtra(
            "serving files are checked with the package jsonschema, which is not installed",
            hint="pip install 'inference-advisor[serve]'",
        ) from None
    for error in Draft202012Validator(schema).iter_errors(config):
        for path, message in _explained(error):
            name = ".".join(str(part) for part in path)
            yield name, message + (_elsewhere(str(path[-1]), schema) if message == _UNKNOWN else "")


def _explained(error: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """An error of the library in a sentence; of a union, only what concerns the alternative that was meant."""
    path = (*above, *error.relative_path)
    if error.validator in ("anyOf", "oneOf"):
        options = error.schema[error.validator]
        meant = _meant(error.schema, options, error.instance)
        if isinstance(meant, str):
            yield path, meant
            return
        for inner in error.context:
            if inner.relative_schema_path[0] in meant:
                yield from _explained(inner, path)
    elif error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = list(error.schema.get("properties", {}))
        for key in sorted(str(key) for key in error.instance if key not in known):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
            yield (*path, key), _UNKNOWN + (f"; did you mean {near[0]}?" if near else "")
    elif error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        for name in missing:
            yield (*path, name), "is required"
    else:
        yield path, str(error.message)[:300]


def _elsewhere(key: str, schema: Mapping[str, Any]) -> str:
    """A hint when a section has the key that the end of this one names: kv_cache_free_gpu_memory_fraction."""
    for section, found in schema["properties"].items():
        for option in _options(found):
            fields = schema["$defs"].get(str(option.get("$ref", "")).rpartition("/")[2], {}).get("properties", {})
            name = next((field for field in fields if len(field) > 8 and key.endswith(field)), None)
            if name:
                return f"; did you mean {section}.{name}?"
    return ""


def _meant(schema: Mapping[str, Any], options: Sequence[Mapping[str, Any]], value: Any) -> set[int] | str:
    """Indices of the alternatives that a value can have meant, or what is wrong with its tag."""
    tagged = schema.get("discriminator")
    if tagged and isinstance(value, Mapping):
        name, mapping = tagged["propertyName"], tagged["mapping"]
        if value.get(name) not in mapping:
            near = difflib.get_close_matches(str(value.get(name)), list(mapping), n=1)
            guess = f"; did you mean {near[0]}?" if near else ""
            return f"{name} {value.get(name)!r} is not one of {', '.join(sorted(mapping))}{guess}"
        return {index for index, option in enumerate(options) if option.get("$ref") == mapping[value[name]]}
    if isinstance(value, Mapping):
        chosen = {
            index for index, option in enumerate(options) if "$ref" in option or "discriminator" in option or "oneOf" in option
        }
        if chosen:
            return chosen
    return {index for index, option in enumerate(options) if option.get("type") != "null"}


def _options(schema: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [schema] if "$ref" in schema else schema.get("anyOf", [])
